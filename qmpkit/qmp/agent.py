"""The guest agent's dialect: no greeting, no ids, one command at a time, a lost thread found again.

The guest may reboot, pause or restart its agent at any moment, so bytes of old
replies can arrive at any time.  After a command that got no reply,
`guest-sync-delimited` with a random number finds the place again: the agent
answers it behind a byte 0xFF, which no JSON contains.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import outcome
import trio
from trio.lowlevel import checkpoint_if_cancelled, reschedule

from qmpkit.errors import HostLacks
from qmpkit.qmp.errors import MonitorGarbled, MonitorSilent
from qmpkit.qmp.session import Observer, Session
from qmpkit.qmp.transport import Spawn
from qmpkit.qmp.wire import NotAMessage, decode, encode

__all__ = ["AgentSession"]

DELIMITER = b"\xff"
SYNC = "guest-sync-delimited"


class AgentSession(Session):
    """A `Session` with a guest agent; made by `open_session(..., kind="agent")`.

    Commands wait for each other, as the agent answers one at a time.  A command
    that has no reply when it succeeds (`guest-shutdown`, `guest-suspend-…`) never
    returns: bound it with `trio.move_on_after`; the next command syncs anew.
    Garbage from the guest fails the command under way with `MonitorGarbled`, and
    the session stays usable.
    """

    def __init__(
        self,
        stream: socket.socket | trio.abc.Stream,
        name: str,
        spawn: Spawn,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(stream, name, spawn, observer)
        self._take_line = self._on_line
        self._turn = trio.Lock()
        self._synced = False
        self._token: int | None = None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Run one agent command and return what the agent returned; see `Session.execute`.

        May be preceded by a `guest-sync-delimited` of ours, when an earlier command
        was cancelled.  Raises `HostLacks` for *fds* and *oob*.
        """
        await checkpoint_if_cancelled()
        if fds or oob:
            raise HostLacks("a guest agent takes no file descriptors and no out-of-band commands")
        data = encode("execute", command, arguments, None)
        async with self._turn:
            if not self._synced:
                await self._sync()
            self._synced = False  # until the reply is here
            reply = await self._call(self._pending.new_id(), data)
            self._synced = True
        if "return" in reply:
            return reply["return"]
        raise self._refusal(command, arguments, reply)

    async def negotiate(self, patience: float) -> None:
        if not patience:  # the first command will sync, and its caller bounds it
            return
        with trio.move_on_after(patience) as scope:
            async with self._turn:
                await self._sync()
        if scope.cancelled_caught:
            raise MonitorSilent(
                self.name, patience, "is qemu-guest-agent installed and running in the guest?"
            )

    async def _sync(self) -> None:
        """Find the place in the stream again; waits as long as the guest is silent."""
        self._token = secrets.randbits(48)
        # The 0xFF also makes the agent forget half a command of before.
        data = DELIMITER + encode("execute", SYNC, {"id": self._token}, None)
        try:
            await self._call(self._pending.new_id(), data)
        finally:
            self._token = None
        self._synced = True

    def _on_line(self, line: bytes) -> None:
        # What stands before the delimiter is the torn end of something older.
        line = line.rpartition(DELIMITER)[2]
        if self._observer is not None:
            self._observe("received", line)
        try:
            message = decode(line)
        except NotAMessage as error:
            if self._token is None:
                self._answer(outcome.Error(MonitorGarbled(self.name, str(error), line)))
            return
        if self._token is not None and message.get("return") != self._token:
            return  # an older command's reply, or the complaint about our delimiter
        self._answer(outcome.Value(message))

    def _answer(self, result: outcome.Outcome[dict[str, Any]]) -> None:
        task = self._pending.take_only()
        if task is not None:
            reschedule(task, result)
