"""What a guest's memory goes through on its way to another QEMU of this program's.

Each way is a block in which it is there, for both ends; at the block's end nothing of it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.errors import CannotMigrate
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.tls import identified
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.process.rundir import machine_dir, socket_path
from qmpkit.qmp.errors import CommandRefused

__all__ = ["Route", "dialled", "laid", "laid_again", "listen", "listened", "listened_again"]
__all__ += ["listened_at_path", "listened_at_port"]

_FD_NAME = "qk-migration"
_NEW_FILE = "name a new file, where there is room for the memory (--file)"


@attrs.frozen
class Route:
    """`uri` is what the source is told; `later`, what the destination is told once it is sent.

    Without `later` the destination listens already.
    """

    uri: str
    later: str = ""


def laid(
    options: MigrationOptions, source: Machine, destination: Machine, *, mapped: bool
) -> AbstractAsyncContextManager[Route]:
    """The way that *options* name; *mapped*: each page has its place in the file (mapped-ram)."""
    match options.way:
        case "unix":
            return _by_unix(source, destination)
        case "tcp":
            return _by_tcp(options, source, destination)
        case "file":
            assert options.file is not None, "which its options have made sure"
            return _by_file(options.file, source, destination, mapped=mapped)
    return _by_fd(source, destination)


@asynccontextmanager
async def laid_again(
    options: MigrationOptions, route: Route | None, source: Machine, destination: Machine
) -> AsyncIterator[str]:
    """Another way after one that was cut in postcopy (`migrate-recover`); what leads there.

    By TCP to the same port, else by a unix socket: a destination whose processors wait for
    memory answers to little, and takes no descriptors.
    """
    if options.way == "tcp" and route is not None:
        await listened_at_port(destination, route.uri)
        yield route.uri
        return
    async with machine_dir(source.name) as folder:
        path = socket_path(folder, "migration")
        await listened_again(destination, f"unix:{path}")
        await trio.to_thread.run_sync(path.chmod, 0o600)
        yield f"unix:{path}"


async def listened_at_port(destination: Machine, uri: str) -> None:
    """`listened_again` by TCP, where it may wait still: QEMU 7.2 does where TLS was spoken.

    Then it refuses to, and takes whoever connects; if it has another reason, nobody can.
    """
    with suppress(CommandRefused):
        await listened_again(destination, uri)


async def listened_again(destination: Machine, uri: str) -> None:
    """Have it wait at another place for the rest of a guest (`migrate-recover`)."""
    await destination.execute("migrate-recover", {"uri": uri}, oob=True)


@asynccontextmanager
async def _by_fd(source: Machine, destination: Machine) -> AsyncIterator[Route]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with (
            _given(source, ours.fileno()) as sends,
            _given(destination, theirs.fileno()) as receives,
        ):
            ours.close()  # else the end of one QEMU is none for the other
            theirs.close()
            await listen(destination, receives)
            yield Route(sends)


@asynccontextmanager
async def _given(machine: Machine, fd: int) -> AsyncIterator[str]:
    """A descriptor by the name that QEMU is to know it by (`getfd`), until it has taken it."""
    try:
        await machine.execute("getfd", {"fdname": _FD_NAME}, fds=[fd])
        yield f"fd:{_FD_NAME}"
    except BaseException:  # it may not have taken it
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *LOST):
            await machine.execute("closefd", {"fdname": _FD_NAME})
        raise


@asynccontextmanager
async def _by_unix(source: Machine, destination: Machine) -> AsyncIterator[Route]:
    async with machine_dir(source.name) as folder:
        path = socket_path(folder, "migration")
        await listened_at_path(destination, path)
        yield Route(f"unix:{path}")


async def listened_at_path(destination: Machine, path: Path) -> None:
    """Have it wait at a socket that its user alone can reach."""
    await listen(destination, f"unix:{path}")
    await trio.to_thread.run_sync(path.chmod, 0o600)


@asynccontextmanager
async def _by_tcp(
    options: MigrationOptions, source: Machine, destination: Machine
) -> AsyncIterator[Route]:
    async with dialled(options, source), listened(options, destination) as port:
        yield Route(f"tcp:{options.address.rpartition(':')[0]}:{port}")


@asynccontextmanager
async def dialled(options: MigrationOptions, source: Machine) -> AsyncIterator[None]:
    """The block in which a source can connect by TCP as its options say."""
    async with AsyncExitStack() as stack:
        if options.tls is not None:
            await stack.enter_async_context(identified(source, options.tls, "client"))
        yield


@asynccontextmanager
async def listened(options: MigrationOptions, destination: Machine) -> AsyncIterator[int]:
    """Have a destination wait at a port of `options.address`: which, when that leaves it open."""
    async with AsyncExitStack() as stack:
        if options.tls is not None:
            await stack.enter_async_context(identified(destination, options.tls, "server"))
        await listen(destination, f"tcp:{options.address}")
        told = await destination.execute("query-migrate")
        yield _port(options.address, told.get("socket-address", ()))


def _port(address: str, listening: Sequence[dict[str, Any]]) -> int:
    """QEMU has chosen the port when it was 0."""
    ports = [found["port"] for found in listening if found["type"] == "inet"]
    return int(ports[0] if ports else address.rpartition(":")[2])


@asynccontextmanager
async def _by_file(
    path: Path, source: Machine, destination: Machine, *, mapped: bool
) -> AsyncIterator[Route]:
    writing = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    sink = await _opened(source.name, path, writing)
    try:
        if mapped:  # QEMU wants to find each place by itself
            yield Route(f"file:{path}", f"file:{path}")
            return
        spring = await _opened(source.name, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with _given(source, sink) as sends, _given(destination, spring) as receives:
                yield Route(sends, receives)
        finally:
            os.close(spring)
    finally:
        os.close(sink)
        with trio.move_on_after(STEP_GRACE, shield=True):
            await trio.to_thread.run_sync(path.unlink, True, abandon_on_cancel=True)


async def _opened(machine: str, path: Path, flags: int) -> int:
    try:
        return await trio.to_thread.run_sync(os.open, path, flags, 0o600)
    except OSError as error:
        fault = Fault("file", f"{str(path)!r} cannot be made: {error.strerror}", _NEW_FILE)
        raise CannotMigrate(machine, [fault]) from error


async def listen(destination: Machine, uri: str) -> None:
    """Have the destination wait for a guest, or load it (`migrate-incoming`)."""
    await destination.execute("migrate-incoming", {"uri": uri})
