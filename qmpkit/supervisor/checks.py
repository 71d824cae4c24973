"""Making the checks of a machine's health, each once: it passes, or it says why not."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container

import trio

from qmpkit.errors import AgentSilent, QmpkitError
from qmpkit.operations.errors import ConsoleEnded, OutputLost
from qmpkit.operations.forwards import Forwarded, connections
from qmpkit.spec.health import (
    AgentCheck,
    Check,
    ConsoleCheck,
    FunctionCheck,
    HttpCheck,
    ProcessCheck,
    QmpCheck,
    TcpCheck,
)
from qmpkit.vm import VM

__all__ = ["CheckFailed", "answer_problem", "checked"]

_LOOK_EVERY = 0.1
_STATUS_LINE_LIMIT = 4096
_STATUS = re.compile("[0-9]{3}")  # what a guest says: more digits than Python reads, it may be


class CheckFailed(QmpkitError):
    """A check did not pass; `why` is what it saw."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


async def checked(check: Check, vm: VM) -> None:
    """Make *check* once; raises CheckFailed, or what QEMU or the guest answered.

    Has no bound of its own: a guest that says nothing keeps it waiting.
    """
    match check:
        case ProcessCheck():
            if vm.machine.child.status is not None:
                raise CheckFailed("the process has ended")
        case QmpCheck():
            await vm.execute("query-status")
        case AgentCheck():
            await _ping(vm)
        case TcpCheck():
            async with await _connected(vm, check.port):
                pass
        case HttpCheck():
            await _get(vm, check)
        case ConsoleCheck():
            await _seen(vm, check)
        case FunctionCheck():
            await _called(check.call, vm)


async def _ping(vm: VM) -> None:
    try:
        await vm.agent.ping()
    except AgentSilent as silent:
        raise CheckFailed(str(silent)) from silent


async def _forward(vm: VM, port: int) -> Forwarded:
    for forward in await vm.forwards():
        if (forward.proto, forward.guest_port) == ("tcp", port):
            return forward
    raise CheckFailed(f"no port of this host leads to {port}")


async def _connected(vm: VM, port: int) -> trio.SocketStream:
    """A connection that the guest has taken.

    QEMU takes every connection itself and only then asks the guest: whether that has
    answered is seen in its own table of connections, which no event tells of.
    """
    forward = await _forward(vm, port)
    address = "127.0.0.1" if forward.address == "0.0.0.0" else forward.address
    before = {it.fd for it in await connections(vm)}
    try:
        stream = await trio.open_tcp_stream(address, forward.port)
    except OSError as error:
        raise CheckFailed(f"{address}:{forward.port} takes no connection: {error}") from error
    try:
        while not await _is_taken(vm, stream, forward, before):  # noqa: ASYNC110
            await trio.sleep(_LOOK_EVERY)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _is_taken(
    vm: VM, stream: trio.SocketStream, forward: Forwarded, before: Container[int]
) -> bool:
    """Whether the guest has answered; connections of *before* may linger for long."""
    place = (forward.guest_address, forward.guest_port)
    for it in await connections(vm):
        if it.fd not in before and (it.guest_address, it.guest_port) == place:
            return it.state != "SYN_SENT"
    # Gone from the table: the guest has refused it, or QEMU has not taken it in yet.
    with trio.move_on_after(_LOOK_EVERY):
        if not await _peek(stream):
            raise CheckFailed(f"port {forward.guest_port} of the guest refuses connections")
    return False


async def _peek(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some(1))
    except trio.BrokenResourceError:
        return b""


async def _get(vm: VM, check: HttpCheck) -> None:
    stream = await _connected(vm, check.port)
    try:
        request = f"GET {check.path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await stream.send_all(request.encode())
        line = await _first_line(stream)
    except trio.BrokenResourceError as error:
        raise CheckFailed("the connection broke before the answer") from error
    finally:
        await trio.aclose_forcefully(stream)
    if problem := answer_problem(line):
        raise CheckFailed(problem)


def answer_problem(line: str) -> str:
    """Why the first line of an HTTP answer is none of one that is well; empty if it is.  Pure."""
    words = line.split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/") or not _STATUS.fullmatch(words[1]):
        return "the answer is no HTTP"
    return "" if 200 <= int(words[1]) <= 399 else f"the answer is {' '.join(words[1:])}"


async def _first_line(stream: trio.SocketStream) -> str:
    seen = b""
    while b"\r\n" not in seen and len(seen) < _STATUS_LINE_LIMIT:
        if not (chunk := await stream.receive_some(1024)):
            break
        seen += chunk
    return seen.split(b"\r\n")[0].decode("latin-1")


async def _seen(vm: VM, check: ConsoleCheck) -> None:
    console = vm.consoles.get(check.serial)
    if console is None:
        raise CheckFailed(f"there is no console {check.serial!r}")
    try:
        await console.reader(replay=True).expect(check.text)
    except (ConsoleEnded, OutputLost) as error:
        raise CheckFailed(str(error)) from error


async def _called(call: Callable[[VM], Awaitable[bool]], vm: VM) -> None:
    try:
        passed = await call(vm)
    except BaseException as error:
        failed = _own_failure(error)
        if failed is None:
            raise
        raise CheckFailed(f"{type(failed).__name__}: {failed}") from error
    if not passed:
        raise CheckFailed("it says no")


def _own_failure(error: BaseException) -> Exception | None:
    """What a function has failed of, also where that came as it was cancelled, in one group."""
    rest: BaseException | None = error
    while isinstance(rest, BaseExceptionGroup):
        rest = rest.split(trio.Cancelled)[1]
        if rest is None or len(rest.exceptions) > 1:
            break
        rest = rest.exceptions[0]
    return rest if isinstance(rest, Exception) else None
