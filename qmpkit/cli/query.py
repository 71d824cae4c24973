"""`qmpkit qmp`: one command, and perhaps events, on a QEMU that somebody else started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import trio

from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.overrides import arguments_from
from qmpkit.cli.safe import several_lines
from qmpkit.cli.talk import noted, print_json, talk
from qmpkit.errors import QmpkitError
from qmpkit.qmp.connect import connect
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Event, Subscription
from qmpkit.qmp.session import Session
from qmpkit.spec.suggest import suggestion

__all__ = ["ask"]


async def ask(
    socket: Path,
    command: str | None,
    words: Sequence[str],
    *,
    second: Path | None,
    events: bool,
    as_json: bool,
) -> int:
    """Send the command, print the reply, then follow events if asked to."""
    if command is None and not events:
        raise Refusal("which command? For example: query-status; or --events to follow events")
    arguments = arguments_from(words)
    async with connect(socket, second=second) as session:
        with ExitStack() as stack:
            # Subscribed before the command is sent: its own events may come before the reply.
            following = stack.enter_context(session.subscribe()) if events else None
            if command is not None:
                async with noted(f"waiting for QEMU to answer {command} …"):
                    reply = await _execute(session, command, arguments)
                _print_reply(reply, as_json)
            if following is not None:
                await _follow(following)
    return Exit.OK


async def _execute(session: Session, command: str, arguments: dict[str, Any]) -> Any:
    try:
        return await session.execute(command, arguments)
    except CommandRefused as refused:
        if refused.error_class != "CommandNotFound":
            raise
        known = await session.execute("query-commands")
        hint = suggestion(command, (entry["name"] for entry in known))
        if not hint:
            raise
        raise _Unknown(f"{refused} ({hint})") from refused


class _Unknown(QmpkitError):
    """QEMU does not know the command, and we know which one may have been meant."""


def _print_reply(reply: Any, as_json: bool) -> None:
    if isinstance(reply, str) and not as_json:
        text = several_lines(reply) if sys.stdout.isatty() else reply.replace("\r\n", "\n")
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
    else:
        print_json(reply, compact=as_json)


async def _follow(events: Subscription) -> None:
    """Print events until Ctrl-C, SIGTERM or the monitor's end (MonitorLost)."""
    talk.note("following events; Ctrl-C ends it")
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_print_all, events)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


async def _print_all(events: Subscription) -> None:
    async for event in events:
        print_json(_plain(event), compact=True)


def _plain(event: Event) -> dict[str, Any]:
    stamp = None if event.time_ns is None else event.time_ns / 1e9
    when = None if stamp is None else datetime.fromtimestamp(stamp).astimezone().isoformat()
    return {"time": when, "event": event.name, "data": dict(event.data)}
