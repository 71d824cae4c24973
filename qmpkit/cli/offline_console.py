"""The console of a machine of a farm without a daemon."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import trio

from qmpkit.cli.direct import console_of
from qmpkit.cli.exits import Refusal
from qmpkit.cli.offline import living_machine
from qmpkit.cli.talk import talk

__all__ = ["own_console"]

_BACKLOG = 4096  # bytes, as many as the daemon shows


async def own_console(
    stack: AsyncExitStack, farm: str, word: str, serial: str | None
) -> tuple[str, trio.abc.Stream]:
    """The machine that *word* means and its console, which is hung up with *stack*.

    What it said last while a daemon listened is shown first.
    """
    seen = await trio.to_thread.run_sync(living_machine, farm, word)
    name, known = seen.record.name, [serial.name for serial in seen.record.spec.serials]
    channel = serial or next(iter(known), "")
    if channel not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise Refusal(f"machine {name!r} has no console {channel!r}: {has}")
    stream = await stack.enter_async_context(console_of(seen, channel))
    talk.note("no daemon runs: what the guest says now is in no log")
    await trio.to_thread.run_sync(_show_end, seen.home.logs / f"{channel}.log")
    return name, stream


def _show_end(log: Path) -> None:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _BACKLOG))
        sys.stdout.buffer.write(file.read(_BACKLOG))
        sys.stdout.buffer.flush()
