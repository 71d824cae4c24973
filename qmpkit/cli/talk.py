"""Where the command writes: data to stdout, talk to stderr.

rich honours NO_COLOR, FORCE_COLOR, TERM=dumb and a stream that is no terminal.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from qmpkit.cli.safe import one_line, several_lines

if TYPE_CHECKING:
    import trio

__all__ = ["Talk", "note_later", "noted", "print_json", "route_log", "stdout_console"]
__all__ += ["DataConsole", "talk"]


class _Stderr:
    """The current stderr; while the terminal is raw, lines need their carriage return.

    Talk that cannot be said (the terminal has gone, nobody reads the pipe) is no reason
    to drop a running machine.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self.raw = False

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text.replace("\n", "\r\n") if self.raw else text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


class _SafeConsole(Console):
    """A console that shows a terminal's commands and does not pass them on.

    What is made of others' text escapes it by itself, so that its width is known; this is
    for what was forgotten.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is to be written, piece by piece."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(several_lines(text), style)


class DataConsole(_SafeConsole):
    """A console on stdout, whose reader may leave: rich would have us end with 1 then."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output")


class Talk:
    """Everything that is said to the person at the terminal."""

    def __init__(self) -> None:
        self.debug = False
        self._stream = _Stderr()
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The console on stderr."""
        if self._console is None:
            self._console = _SafeConsole(file=self._stream, emoji=False)  # type: ignore[arg-type]
        return self._console

    def raw_terminal(self, raw: bool) -> None:
        """Tell whether a guest's console has the terminal at the moment."""
        self._stream.raw = raw

    def say(self, message: str) -> None:
        """What has been done."""
        self._print(Text(one_line(message)))

    def note(self, message: str) -> None:
        """Something that happens as it should."""
        self._print(Text(one_line(message), style="dim"))

    def warn(self, message: str) -> None:
        """Something that works, but not as one would hope."""
        self._print(Text.assemble(("warning: ", "bold yellow"), one_line(message)))

    def error(self, message: str) -> None:
        """Why the command does not do what was asked; QEMU's own words may have lines."""
        self._print(Text.assemble(("error: ", "bold red"), several_lines(message)))

    def trace(self, report: str) -> None:
        """Lines for whoever looks for a fault in this program."""
        self._print(Text(several_lines(report)))

    def _print(self, text: Text) -> None:
        # soft_wrap: what is said gets copied, so only the terminal may break its lines.
        self.console.print(text, soft_wrap=True, highlight=False)


talk = Talk()


class LogToTalk(logging.Handler):
    """The library's log as talk; a warning that repeats itself is shown once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if record.levelno < logging.WARNING:
            talk.trace(f"{record.name}: {message}")
        elif message not in self._told:
            self._told.add(message)
            talk.warn(message)


def route_log(debug: bool) -> None:
    """Send the library's log to stderr, from warnings on (everything with *debug*)."""
    talk.debug = debug
    log = logging.getLogger("qmpkit")
    log.handlers = [LogToTalk()]
    log.setLevel(logging.DEBUG if debug else logging.WARNING)
    log.propagate = False


def stdout_console() -> Console:
    """For tables: as wide as they need where nobody looks at the width."""
    if sys.stdout.isatty():
        return DataConsole(emoji=False)
    return DataConsole(emoji=False, width=10_000)


def print_json(value: Any, *, compact: bool = False) -> None:
    r"""*value* as JSON on stdout: in colours on a terminal, *compact* on one line.

    ASCII only, which is valid wherever it goes.  A byte of a file name that is not UTF-8
    is written as `\udcXX`: in Python `os.fsencode(json.loads(…))` gives the name's bytes.
    """
    if compact or not sys.stdout.isatty():
        print(json.dumps(value, indent=None if compact else 2), flush=True)
        return
    from rich.json import JSON

    DataConsole(emoji=False).print(JSON.from_data(value, ensure_ascii=True), soft_wrap=True)


async def note_later(message: str, scope: trio.CancelScope, after: float = 1.0) -> None:
    """Say *message* after that many seconds, unless *scope* is cancelled before."""
    import trio

    with scope:
        await trio.sleep(after)
        talk.note(message)


@asynccontextmanager
async def noted(message: str) -> AsyncIterator[None]:
    """Say *message* when the block takes more than a second."""
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note_later, message, trio.CancelScope())
        yield
        nursery.cancel_scope.cancel()
