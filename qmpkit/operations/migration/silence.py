"""A destination of which nothing is heard any more: a cable is pulled, or the other host is gone.

TCP goes on trying for a quarter of an hour, and QEMU says "postcopy-active" all the time.  That
is as good as can be while the cable may be put in again: then memory goes on by itself.  To pause
would not be: a QEMU 7.2 whose socket is full may never find out of it.  So the guest is only
given up, once the other supervisor cannot be asked for as long as a cut may last, and for
`SILENCE` seconds both are true:

    no word of the other supervisor: one that was killed is not enough, its QEMU takes
    memory in all the same
    no memory has gone: what is not heard of may be there all the same
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from qmpkit.operations._protocols import Monitor
from qmpkit.operations.steps import LOST

__all__ = ["SILENCE", "Silence"]

SILENCE = 30.0
"""Seconds without any sign of life of the other side, which gives one every few seconds."""

_HUSH = 5.0  # seconds without a word after which it is asked whether memory goes
_EVERY = 1.0


class Silence:
    """That of *source*'s other side, of which was *unheard* for so many seconds."""

    def __init__(self, source: Monitor, unheard: Callable[[], float]) -> None:
        self._source = source
        self._unheard = unheard
        self._sent: object = None
        self._alive_at = trio.current_time()

    @property
    def is_complete(self) -> bool:
        """Whether there was no sign of life for `SILENCE` seconds."""
        return trio.current_time() - self._alive_at >= SILENCE

    async def listened(self) -> None:
        """Take note of each sign of life, until QEMU has ended.

        It may be silent itself: its main loop waits for the network in the last moment.
        """
        with suppress(*LOST):
            while True:
                if self._unheard() < _HUSH:
                    self._alive_at = trio.current_time()
                elif (sent := await self._transferred()) != self._sent:
                    self._sent, self._alive_at = sent, trio.current_time()
                await trio.sleep(_EVERY)

    async def _transferred(self) -> object:
        told = await self._source.execute("query-migrate")
        return told.get("ram", {}).get("transferred")
