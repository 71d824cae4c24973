"""The line to a guest agent: one session, and whether anybody listens at its other end.

An agent that is not running answers nothing, and the protocol has no way to
tell it from a slow one.  QEMU knows: it sees the guest open and close the
channel's port (VSERPORT_CHANGE).  So nothing here waits for an agent that is
not there, and no timer guesses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import trio

from qmpkit.errors import AgentSilent, MachineDied, MachineGone, QmpkitError
from qmpkit.operations._protocols import Monitor, Verdict
from qmpkit.operations.errors import AgentRefused, end_of
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.spec.layout import AGENT as PORT_ID
from qmpkit.spec.names import chardev_id

__all__ = ["AgentLink"]

# How long a caller that is cancelled waits for what has to be undone in the guest.  A guest
# that is slower than that is tidied behind its back.
_GRACE = 1.0
_NOT_RUNNING = (
    "the guest agent is not running there. Cure: install and start qemu-guest-agent in the "
    "guest; while it boots, await agent.wait_ready()"
)
_STOPPED = "the guest agent stopped before it answered (the guest may be going down)"


class AgentLink:
    """Sends commands to the agent once `serve` runs; see `Agent`, its only user."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        name: str,
        monitor: Monitor | None,
        verdict: Verdict | None,
    ) -> None:
        self.name = name
        self._verdict = verdict
        self._stream = stream
        self._monitor = monitor
        self._session: Session | None = None
        self._nursery: trio.Nursery | None = None  # while it is served
        self._begun = trio.Event()
        self._listening: bool | None = None  # None: QEMU has not told (yet)
        self._changed = trio.Event()
        self._waiting: set[trio.CancelScope] = set()

    async def serve(self) -> None:
        """Hold the session until the stream ends; closes the stream."""
        try:
            # No handshake here: the guest may not have booted.  The first command makes it.
            async with (
                open_session(
                    self._stream, name=self.name, kind="agent", greeting_timeout=0
                ) as self._session,
                trio.open_nursery() as nursery,
            ):
                self._nursery = nursery
                self._begun.set()
                if self._monitor is not None:
                    nursery.start_soon(self._follow_port, self._monitor)
                try:
                    await self._session.wait_lost()
                finally:
                    self._nursery = None
                nursery.cancel_scope.cancel()
        finally:
            self._begun.set()
            self._notice(listening=None)

    @property
    def told(self) -> bool:
        """True when QEMU tells whether somebody listens."""
        return self._monitor is not None

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, asked: str
    ) -> Any:
        """One command.  *asked* completes "the guest refused …" in errors.

        Raises AgentRefused for the agent's error reply, AgentSilent when no agent runs
        or it stops meanwhile, MachineGone or MachineDied when the machine has ended.
        """
        session = await self.session(asked)
        try:
            return await self._answer(session, command, arguments, asked)
        except CommandRefused as refused:
            raise AgentRefused(self.name, asked, refused.desc, refused.error_class) from refused
        except MonitorLost as lost:
            raise await self._end(asked) from lost

    async def ask(
        self,
        command: str,
        arguments: Mapping[str, Any],
        take: Callable[[Any], None],
        undo: Callable[[Any], Awaitable[None]],
        *,
        asked: str,
    ) -> None:
        """`execute` for what makes something in the guest that somebody has to undo.

        The answer is given to *take*, also when cancelled, if it comes in 1 s; one that comes
        later to *undo*, for by then nobody waits for it.  Whatever it fails of is the caller's:
        arguments that are no JSON are not to end the link, and the machine with it.
        """
        waits, taken = True, False
        failures: list[Exception] = []

        async def fetch() -> None:
            nonlocal taken
            try:
                reply = await self.execute(command, arguments, asked=asked)
                if waits:
                    take(reply)
                    taken = True
                else:
                    await undo(reply)
            except Exception as error:
                failures.append(error)

        over = await self._begin(fetch, asked)
        try:
            await over.wait()
        finally:
            with trio.move_on_after(_GRACE, shield=True):
                await over.wait()
            waits = False
        if failures:
            raise failures[0]
        if not taken:
            raise await self._end(asked)

    async def tidy(self, work: Callable[[], Awaitable[object]]) -> None:
        """Have *work* done in the guest, whatever becomes of its caller, who waits 1 s for it.

        It goes on behind the caller's back until it is done or the machine has ended.  What
        the guest or its end raise is passed over: nobody could do anything about it.
        """

        async def done() -> None:
            with suppress(QmpkitError):
                await work()

        with trio.move_on_after(_GRACE, shield=True), suppress(QmpkitError):
            over = await self._begin(done, "to tidy up")
            await over.wait()

    async def _begin(self, work: Callable[[], Awaitable[None]], asked: str) -> trio.Event:
        """Begin *work* in a task of the link; what is returned is set when it is over."""
        await self._begun.wait()
        if self._nursery is None:
            raise await self._end(asked)
        over = trio.Event()

        async def run() -> None:
            try:
                await work()
            finally:
                over.set()

        self._nursery.start_soon(run)
        return over

    async def session(self, asked: str) -> Session:
        """The session, if there is an agent to talk to; raises AgentSilent or MachineGone."""
        await self._begun.wait()
        session = self._session
        if session is None or session.lost is not None:
            raise await self._end(asked)
        # What was seen is only trusted when it says yes; a no is asked once more.
        if not self._listening:
            await self._look()
        if self._listening is False:
            raise AgentSilent(self.name, asked, _NOT_RUNNING)
        return session

    async def opened(self, asked: str) -> None:
        """Wait until somebody listens (at once when QEMU cannot tell)."""
        await self._begun.wait()
        if self._listening is None:
            await self._look()
        while self._monitor is not None and not self._listening:
            if self._session is None or self._session.lost is not None:
                raise await self._end(asked)
            await self._changed.wait()

    async def _end(self, asked: str) -> MachineGone | MachineDied:
        await trio.lowlevel.checkpoint()
        gone = MachineGone(self.name, f"asking the guest {asked}")
        return await end_of(gone, self._verdict)

    @contextmanager
    def understood(self, command: str) -> Iterator[None]:
        """Whoever picks a reply apart here gets MonitorGarbled when it has not that shape."""
        try:
            yield
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            why = f"the agent's reply to {command} is malformed: {error!r}"
            raise MonitorGarbled(self.name, why) from error

    async def _answer(
        self, session: Session, command: str, arguments: Mapping[str, Any] | None, asked: str
    ) -> Any:
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return await session.execute(command, arguments)
            finally:
                self._waiting.discard(scope)
        raise AgentSilent(self.name, asked, _STOPPED)

    async def _follow_port(self, monitor: Monitor) -> None:
        try:
            # Changes are noted from the start.  How it was before them is asked when somebody
            # wants to know: a start that never uses the agent pays for no command.
            with monitor.subscribe("VSERPORT_CHANGE", where={"id": PORT_ID}) as changes:
                async for event in changes:
                    self._notice(listening=event.data.get("open") is True)
        except QmpkitError:
            # The monitor is gone.  So is the machine, or soon: the session will tell.
            self._monitor = None
            self._notice(listening=None)

    async def _look(self) -> None:
        if self._monitor is not None:
            self._notice(listening=await _is_open(self._monitor))

    def _notice(self, *, listening: bool | None) -> None:
        if self._listening and listening is False:
            for scope in self._waiting:
                scope.cancel()  # nobody will answer these any more
        self._listening = listening
        changed, self._changed = self._changed, trio.Event()
        changed.set()


async def _is_open(monitor: Monitor) -> bool | None:
    wanted = chardev_id("agent")
    try:
        devices = await monitor.execute("query-chardev")
    except MonitorLost:
        return None  # QEMU cannot tell any more, the agent may still answer
    for device in devices:
        if device["label"] == wanted:
            return device["frontend-open"] is True
    return None
