"""What is waited for, shown once it takes long: a line with a clock, elsewhere a line now and then.

It is drawn when something comes; whoever waits sees to it that something does.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.live import Live
from rich.text import Text

from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import talk

__all__ = ["Waiting"]

_AFTER = 2.0
_TOLD_FIRST, _TOLD_EVERY = 5.0, 30.0


class Waiting:
    """`with Waiting("waiting for web1 to stop") as waiting: …; waiting.tick()`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began = time.monotonic()
        self._tell_at = _TOLD_FIRST
        self._live: Live | None = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tick(self) -> None:
        """Show it, if it takes long."""
        seconds = time.monotonic() - self._began
        if talk.console.is_terminal:
            if seconds >= _AFTER:
                self._draw(Text(one_line(f"{self.what}, {seconds:.0f} s"), style="dim"))
        elif seconds >= self._tell_at:
            self._tell_at = seconds + _TOLD_EVERY
            talk.note(f"{self.what}, {seconds:.0f} s so far")

    def _draw(self, line: Text) -> None:
        if self._live is None:
            self._live = Live(
                console=talk.console,
                auto_refresh=False,  # no thread
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(line, refresh=True)
