"""How far something is: the latest fraction, for whoever looks."""

from __future__ import annotations

import re

import trio

__all__ = ["Progress", "percentages"]

_SHOWN = re.compile(rb"\((\d+\.\d+)/100%\)\r")
_LONGEST = 64  # bytes of a line that is not complete yet


class Progress:
    """An async iterable of the fraction done, rising from 0.0; 1.0 is the last.

    Each iterator begins with the latest fraction and skips what it was too slow to see.
    It ends when the work does, so 1.0 means that all of it is done.
    """

    def __init__(self) -> None:
        self.fraction = 0.0
        """The latest; may be read at any time."""
        self._changed = trio.Event()

    def _set(self, fraction: float) -> None:
        if fraction > self.fraction:
            self.fraction = fraction
            self._changed.set()
            self._changed = trio.Event()

    def __aiter__(self) -> _Look:
        return _Look(self)


class _Look:
    """One who looks; no generator, which a `break` would leave to the garbage collector."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen = -1.0

    def __aiter__(self) -> _Look:
        return self

    async def __anext__(self) -> float:
        if self._seen >= 1.0:
            raise StopAsyncIteration
        while self._progress.fraction <= self._seen:
            await self._progress._changed.wait()
        await trio.lowlevel.checkpoint()
        self._seen = self._progress.fraction
        return self._seen


class percentages:
    """Reads `(12.34/100%)` out of what qemu-img prints with -p, for a `Progress`.

    100 % is left to the caller, who has yet to put the image in its place.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rest = b""

    def __call__(self, chunk: bytes) -> None:
        text = self._rest + chunk
        shown = _SHOWN.findall(text)
        if shown and (fraction := round(float(shown[-1]) / 100, 4)) < 1.0:
            self._progress._set(fraction)
        self._rest = text[text.rfind(b"\r") + 1 :][-_LONGEST:]
