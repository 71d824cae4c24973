"""One QMP stream: commands pipelined over it, one reader, events to subscribers.

How a command travels: `execute` puts it straight on the socket and parks its
task; the reader finds the task by the reply's id and wakes it.  No task, queue
or lock is made per command.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import outcome
import trio
from qemu.qmp.models import Greeting
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from qmpkit.errors import HostLacks
from qmpkit.qmp.errors import (
    CommandRefused,
    MonitorGarbled,
    MonitorLost,
    MonitorMisread,
    MonitorSilent,
    MonitorTorn,
)
from qmpkit.qmp.events import EventHub, Subscription
from qmpkit.qmp.transport import Spawn, duplicates, transport_for
from qmpkit.qmp.wire import Framer, FrameTooLong, NotAMessage, Pending, decode, encode

__all__ = ["Direction", "Observer", "Session", "Strays"]

Direction = Literal["sent", "received"]
Observer = Callable[[Direction, bytes, float], None]
"""Called with every message, whole and without its line end, and `time.monotonic()` in seconds.

It runs inside the reader and the sender: it must not block.  One that raises is
logged and taken off.
"""

_log = logging.getLogger(__name__)


class Strays(NamedTuple):
    """Replies that nobody waited for, counted by kind."""

    late: int
    duplicated: int
    unknown: int


class Session:
    """A negotiated QMP connection; made by `open_session` or `qmpkit.connect`.

    Any number of tasks may use it at once.
    """

    def __init__(
        self,
        stream: socket.socket | trio.abc.Stream,
        name: str,
        spawn: Spawn,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.greeting: Greeting | None = None
        self.oob = False
        self._transport = transport_for(stream, spawn)
        self._observer = observer
        self._framer = Framer()
        self._pending: Pending[Task] = Pending()
        self._events = EventHub(name)
        self._fd_turn = trio.Semaphore(1)
        self._take_line: Callable[[bytes], None] = self._on_greeting
        self._greeted = trio.Event()
        self._lost: MonitorLost | MonitorGarbled | None = None
        self._ended = trio.Event()

    # --- what a user calls

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Run one QMP command and return what QEMU returned.

        Commands of several tasks are under way at once; QEMU runs them in the order
        of sending.  *fds* travel with the command (unix sockets only) and stay the
        caller's to close.  *oob* overtakes commands that are under way (`exec-oob`,
        QEMU 2.12, only for commands whose schema has `allow-oob`).  QEMU reads no
        further while eight commands wait: keep fewer under way where one must overtake.

        There is no timeout: use `trio.fail_after`.  When cancelled, a command whose
        first byte has left has an unknown outcome and its late reply is dropped; one
        that had not begun to leave never runs.

        Raises `CommandRefused` for QEMU's error reply; `MonitorLost` or
        `MonitorGarbled` when the stream ends first, at once when it has ended
        already; `HostLacks` when fds or oob cannot be had on this connection;
        TypeError or ValueError for arguments that are no JSON.
        """
        await checkpoint_if_cancelled()
        if oob and not self.oob:
            raise HostLacks(f"machine {self.name!r} offers no out-of-band commands")
        ident = self._pending.new_id()
        data = encode("exec-oob" if oob else "execute", command, arguments, ident)
        if fds:
            reply = await self._call_with_fds(ident, data, fds)
        else:
            reply = await self._call(ident, data)
        if "return" in reply:
            return reply["return"]
        raise self._refusal(command, arguments, reply)

    def subscribe(
        self, *names: str, where: Mapping[str, Any] | None = None, buffer: int = 1000
    ) -> Subscription:
        """Events called *names* (none: all) whose data has every item of *where*.

        Collection starts when the `with` block of the result is entered: subscribe,
        then send, then ask for the verdict.  *buffer* is how many unread events are
        kept; one more ends this subscription with `EventsLost`, and it alone.
        Entering it after the stream's end raises `MonitorLost` or `MonitorGarbled`.
        """
        return Subscription(self._events, names, where, buffer)

    @property
    def lost(self) -> MonitorLost | MonitorGarbled | None:
        """Why the stream ended; None while it lives."""
        return self._lost

    async def wait_lost(self) -> MonitorLost | MonitorGarbled:
        """Wait for the stream's end and return why."""
        await self._ended.wait()
        assert self._lost is not None
        return self._lost

    @property
    def strays(self) -> Strays:
        """How many replies were dropped because nobody waited for them."""
        return Strays(self._pending.late, self._pending.duplicated, self._pending.unknown)

    # --- one command

    async def _call(
        self,
        ident: int,
        data: bytes,
        fds: Sequence[int] = (),
        turn: ExitStack | None = None,
    ) -> dict[str, Any]:
        """Send and wait for the reply; *turn* is closed when no reply can come any more."""
        if self._lost is not None:
            raise self._loss()
        pending = self._pending
        unsent = self._send(data, fds)
        pending.waiting[ident] = current_task()

        def give_up(_: object) -> Abort:
            if unsent is not None and self._transport.withdraw(unsent):
                pending.forget(ident)
            else:
                pending.abandon(ident, turn.pop_all().close if turn else _nothing)
            return Abort.SUCCEEDED

        reply: dict[str, Any] = await wait_task_rescheduled(give_up)
        return reply

    async def _call_with_fds(self, ident: int, data: bytes, fds: Sequence[int]) -> dict[str, Any]:
        # QEMU keeps the descriptors that came last until a command takes them: a second
        # set arriving before that replaces the first.  So one such command at a time, and
        # a cancelled one keeps its turn until QEMU has answered it.
        with ExitStack() as turn:
            await self._fd_turn.acquire()
            turn.callback(self._fd_turn.release)
            return await self._call(ident, data, fds, turn)

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> Any:
        # Copies, as the caller may close its own while ours still wait to be sent.
        copies = duplicates(fds) if fds else ()
        try:
            unsent = self._transport.send(data, copies)
        except OSError as error:
            # The reader ends the session, after the replies that can still be read.
            raise MonitorLost(self.name, f"sending failed: {error.strerror}") from error
        if self._observer is not None:
            self._observe("sent", data)
        return unsent

    def _refusal(
        self, command: str, arguments: Mapping[str, Any] | None, reply: dict[str, Any]
    ) -> CommandRefused | MonitorGarbled:
        match reply.get("error"):
            case {"class": str(), "desc": str()}:
                return CommandRefused(self.name, command, dict(arguments or {}), reply)
        why = f"the reply to {command} is neither a result nor an error"
        return MonitorGarbled(self.name, why, repr(reply).encode())

    # --- the reader

    async def _read(self) -> None:
        """Read until the stream ends or cannot be trusted; never runs a user's code."""
        transport, framer = self._transport, self._framer
        line = b""
        try:
            while data := await transport.receive():
                for line in framer.feed(data):
                    self._take_line(line)
            rest = framer.unfinished
            self._end(MonitorTorn(self.name, rest) if rest else MonitorLost(self.name, _CLOSED))
        except MonitorGarbled as error:
            self._end(error)
        except (NotAMessage, FrameTooLong) as error:
            self._end(MonitorGarbled(self.name, str(error), line))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(MonitorLost(self.name, str(error)), error)
        finally:
            self._end(MonitorLost(self.name, "the session was closed"))

    def _on_greeting(self, line: bytes) -> None:
        if self._observer is not None:
            self._observe("received", line)
        try:
            self.greeting = Greeting(decode(line))
        except (KeyError, TypeError) as error:
            raise MonitorGarbled(self.name, "this is no QMP greeting", line) from error
        self._take_line = self._on_line
        self._greeted.set()

    def _on_line(self, line: bytes) -> None:
        if self._observer is not None:
            self._observe("received", line)
        message = decode(line)
        if "event" in message:
            self._events.publish(message, time.monotonic())
        elif "id" in message:
            task = self._pending.take(message["id"])
            if task is not None:
                reschedule(task, outcome.Value(message))
        else:
            self._on_anonymous(message, line)

    def _on_anonymous(self, message: dict[str, Any], line: bytes) -> None:
        match message.get("error"):
            case {"desc": str(desc)}:
                raise MonitorMisread(self.name, desc, line)
        raise MonitorGarbled(self.name, "a message that is no reply and no event", line)

    # --- start and end

    async def negotiate(self, patience: float) -> None:
        """Wait for the greeting and answer it, once, before the first command; see `open_session`.

        Raises `MonitorSilent` after *patience* seconds, `MonitorLost` or `MonitorGarbled`.
        """
        with trio.move_on_after(patience) as scope:
            await self._greeted.wait()
            if self._lost is not None:
                raise self._loss()
            assert self.greeting is not None
            self.oob = "oob" in self.greeting.QMP.capabilities
            await self.execute("qmp_capabilities", {"enable": ["oob"]} if self.oob else None)
        if scope.cancelled_caught:
            raise MonitorSilent(self.name, patience)

    def _end(self, why: MonitorLost | MonitorGarbled, cause: BaseException | None = None) -> None:
        if self._lost is not None:
            return
        why.__cause__ = cause or why.__cause__
        self._lost = why
        # A peer that broke the protocol must not go on filling our socket.
        self._transport.hang_up()
        for task in self._pending.drain():
            reschedule(task, outcome.Error(self._loss()))
        self._events.end(self._loss)
        self._greeted.set()
        self._ended.set()

    def _loss(self) -> MonitorLost | MonitorGarbled:
        # A fresh one for each who is told: a shared exception would collect their tracebacks.
        assert self._lost is not None
        again = type(self._lost)(*self._lost.args)
        again.__cause__ = self._lost.__cause__
        return again

    def _observe(self, direction: Direction, data: bytes) -> None:
        assert self._observer is not None
        try:
            self._observer(direction, data.rstrip(b"\r\n"), time.monotonic())
        except Exception:
            # Not the command's fault, nor the reader's: the observer alone is dropped.
            _log.exception("machine %r: the QMP observer failed and is taken off", self.name)
            self._observer = None


_CLOSED = "the other side closed it"


def _nothing() -> None:
    """Nothing hangs on the late reply."""
