"""`qmpkit console`: the terminal on a machine's console, by the farm's daemon.

When none runs, by the machine's own socket.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import AsyncExitStack

import h11
import trio

from qmpkit.cli.daemon import Daemon, DaemonAbsent, NoDaemon, absent, farm_daemon
from qmpkit.cli.exits import DaemonSaid, Exit
from qmpkit.cli.farm_actions import one_machine
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.talk import talk
from qmpkit.cli.terminal import tidy
from qmpkit.cli.which_farm import which_farm
from qmpkit.operations.console import Console
from qmpkit.operations.console_attach import AttachEnd

__all__ = ["use_console"]

_READ_SIZE = 65536
_SEEN_WITHIN = 5.0


async def use_console(name: str, serial: str | None, farm: str | None) -> int:
    """Attach until Ctrl-] is typed, or the machine ends, which is exit status 1.

    Whatever else stops it, the terminal is as it was before.
    """
    async with interruptible(), AsyncExitStack() as stack:
        daemon, before = None, None
        try:
            daemon = await trio.to_thread.run_sync(lambda: farm_daemon(farm))
            machine = await trio.to_thread.run_sync(one_machine, daemon, name)
            before = await trio.to_thread.run_sync(_pid_of, daemon, machine)
            stream: trio.abc.Stream = await _opened(daemon, machine, serial)
        except NoDaemon:
            from qmpkit.cli.offline_console import own_console

            machine, stream = await own_console(stack, which_farm(farm), name, serial)
        end = await _use(stream, machine, serial or "serial0")
        if end is not AttachEnd.MACHINE:
            return Exit.OK
        talk.error(await trio.to_thread.run_sync(_why_ended, daemon, machine, before))
        return Exit.FAILED


def _pid_of(daemon: Daemon, machine: str) -> int | None:
    pid: int | None = daemon.get("machines", machine)["pid"]
    return pid


def _next_pid_of(daemon: Daemon, machine: str, before: int | None) -> int | None:
    """Its process now; the daemon has a moment to see that the one *before* is gone."""
    until = time.monotonic() + _SEEN_WITHIN
    happenings = daemon.events("events", machine=machine, beat=500)  # before the look
    while (pid := _pid_of(daemon, machine)) == before and time.monotonic() < until:
        if next(happenings, None) is None:
            break
    return pid


def _why_ended(daemon: Daemon | None, machine: str, before: int | None) -> str:
    """What has become of a machine, in the process *before*, whose console has ended."""
    try:
        pid = None if daemon is None else _next_pid_of(daemon, machine, before)
    except DaemonAbsent as absent:
        return str(absent)
    except DaemonSaid:  # it is forgotten
        pid = None
    if pid in (None, before):
        return f"machine {machine!r} has ended"
    moved = f"machine {machine!r} goes on in another process ({pid}), where it has moved or started"
    return f"{moved}. Cure: `qmpkit console {machine}` again"


async def _use(stream: trio.abc.Stream, machine: str, serial: str) -> AttachEnd:
    talk.note(f"{machine}: Ctrl-] leaves the console")
    console = Console(stream, name=machine, channel=serial)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.run)
            talk.raw_terminal(sys.stdin.isatty())
            try:
                end = await console.attach(replay=True)
            finally:
                talk.raw_terminal(False)
                nursery.cancel_scope.cancel()
    finally:
        tidy(console.output_bytes[-1:])
    return end


async def _opened(daemon: Daemon, machine: str, serial: str | None) -> _Duplex:
    query: dict[str, str | int] = {} if serial is None else {"serial": serial}
    target = daemon.target("machines", machine, "console", query=query)
    try:
        stream = _Duplex(await trio.open_unix_socket(daemon.path))
    except OSError as error:
        raise absent(daemon.farm) from error
    try:
        await stream.ask(target)
    except BaseException:
        await stream.aclose()
        raise
    return stream


class _Duplex(trio.abc.Stream):
    """A request whose body and answer go on side by side, as one stream of bytes."""

    def __init__(self, transport: trio.SocketStream) -> None:
        self._transport = transport
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, target: str) -> None:
        """Send the request and read the answer's beginning; raises DaemonSaid."""
        headers = [("Host", "localhost"), ("Transfer-Encoding", "chunked")]
        await self._send(h11.Request(method="POST", target=target, headers=headers))
        answer = await self._next()
        if isinstance(answer, h11.Response) and answer.status_code >= 400:
            said = b""
            while isinstance(part := await self._next(), h11.Data):
                said += part.data
            raise DaemonSaid(json.loads(said)["error"])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Keystrokes."""
        await self._send(h11.Data(data=bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        """As of any stream."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the console says; empty at its end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def aclose(self) -> None:
        """Hang up."""
        await self._transport.aclose()

    async def _send(self, event: h11.Request | h11.Data) -> None:
        await self._transport.send_all(self._http.send(event) or b"")

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._transport.receive_some(_READ_SIZE))
        except h11.RemoteProtocolError:
            return h11.ConnectionClosed()  # it ended in the midst of its answer
        return event
