"""The forms that a machine's RAM has in a file: as QEMU streams it, packed, or mapped.

A packed one goes through a pipe and zstd in this process, for no QEMU packs what it writes
into a file.  A mapped one has each page at a place of its own (mapped-ram, QEMU 9.0), so
that several threads write it, and read it again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import QmpkitError

__all__ = ["Form", "OpenState", "StateBroken", "Way", "reading", "writing"]

Form = Literal["plain", "packed", "mapped"]
"""How the RAM is in its file; which of them one is says the file itself."""

_FD_NAME = "qk-state"
_MAPPED = "mapped-ram"
_MAGIC = b"\x28\xb5\x2f\xfd"  # of zstd
_HEAD = 4096  # where QEMU writes the capabilities that both ends must have
_RAM = b"\x03ram"  # the section from which on the guest's own words come
_PIECE = 1 << 20
_LEVEL = 1  # a guest's memory becomes a third at 500 MB/s; a higher one only takes longer
_REMOVAL = 10.0  # seconds that QEMU may take to let go of a descriptor
_MOST_THREADS = 16


class StateBroken(Exception):
    """The file, or the disk below it, fails; the text says how."""


class _Monitored(Protocol):
    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
    ) -> Any: ...


@attrs.frozen
class Way:
    """What QEMU is told: where the state goes or comes from, by which capabilities."""

    uri: str
    capabilities: Mapping[str, bool]


@attrs.define
class OpenState:
    """A file with a machine's state, open to be read, and the form that is in it.

    `inherited`: its number in the QEMU that was started with it, which need not be handed it.
    """

    fd: int
    form: Form
    inherited: int | None = None

    @classmethod
    def of(cls, path: Path) -> OpenState:
        """Open *path* and look at it.  Blocking; OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(fd, _form_of(os.pread(fd, _HEAD, 0)))
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close it, when a machine has read it or is not to; may come twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _form_of(head: bytes) -> Form:
    if head.startswith(_MAGIC):
        return "packed"
    before, _, _ = head.partition(_RAM)
    return "mapped" if _MAPPED.encode() in before else "plain"


@asynccontextmanager
async def writing(machine: _Monitored, fd: int, form: Form) -> AsyncIterator[Way]:
    """A way for QEMU to write its state into the file *fd*; all is in it after the block.

    Raises StateBroken when that cannot be, which cancels the block.
    """
    known = await _known(machine)
    # Said, for a save of another form may have been before.
    off = {name: False for name in (_MAPPED, "multifd") if name in known}
    try:
        match form:
            case "plain":
                async with _handed(machine, _Open(fd), off) as way:
                    yield way
            case "packed":
                async with _pumped(_pack, fd) as end, _handed(machine, end, off) as way:
                    yield way
            case "mapped":
                async with _mapped(machine, fd, known) as way:
                    yield way
    finally:
        with trio.move_on_after(_REMOVAL, shield=True), suppress(QmpkitError):
            await machine.execute("closefd", {"fdname": _FD_NAME})  # it has taken it, as a rule


@asynccontextmanager
async def reading(machine: _Monitored, state: OpenState) -> AsyncIterator[Way]:
    """A way for a QEMU that was started as incoming to read the *state*."""
    fd = state.fd
    match state.form:
        case "plain" if state.inherited is not None:
            yield Way(f"fd:{state.inherited}", {})
        case "plain":
            async with _handed(machine, _Open(fd), {}) as way:
                yield way
        case "packed":
            async with _pumped(_unpack, fd, reads=True) as end, _handed(machine, end, {}) as way:
                yield way
        case "mapped":
            async with _mapped(machine, fd, await _known(machine)) as way:
                yield way


@asynccontextmanager
async def _mapped(machine: _Monitored, fd: int, known: set[str]) -> AsyncIterator[Way]:
    if _MAPPED not in known:
        raise StateBroken("this QEMU has no mapped-ram, which came with 9.0")
    fdset = (await machine.execute("add-fd", fds=[fd]))["fdset-id"]
    try:
        await machine.execute("migrate-set-parameters", {"multifd-channels": _threads()})
        yield Way(f"file:/dev/fdset/{fdset}", {_MAPPED: True, "multifd": True})
    finally:
        with trio.move_on_after(_REMOVAL, shield=True), suppress(QmpkitError):
            await machine.execute("remove-fd", {"fdset-id": fdset})


async def _known(machine: _Monitored) -> set[str]:
    found = await machine.execute("query-migrate-capabilities")
    return {it["capability"] for it in found}


def _threads() -> int:
    return max(2, min(os.cpu_count() or 1, _MOST_THREADS))


class _Open:
    """One end of ours, which is closed once QEMU has its own; `close` may come twice."""

    def __init__(self, fd: int, *, ours: bool = False) -> None:
        self.fd = fd
        self._ours = ours

    def close(self) -> None:
        if self._ours:
            os.close(self.fd)
        self._ours = False


@asynccontextmanager
async def _handed(machine: _Monitored, end: _Open, off: Mapping[str, bool]) -> AsyncIterator[Way]:
    await machine.execute("getfd", {"fdname": _FD_NAME}, fds=[end.fd])
    end.close()  # so that QEMU's own is the last
    yield Way(f"fd:{_FD_NAME}", off)


_Pump = Callable[[trio.lowlevel.FdStream, int], Any]


@asynccontextmanager
async def _pumped(pump: _Pump, fd: int, *, reads: bool = False) -> AsyncIterator[_Open]:
    """QEMU's end of a pipe whose other end is pumped into the file, or out of it."""
    out, into = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):  # more than this user may have in pipes: it only takes longer
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIECE)
    mine, its = (into, out) if reads else (out, into)
    end = _Open(its, ours=True)
    try:
        async with trio.lowlevel.FdStream(mine) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, fd)
            try:
                yield end
            finally:
                end.close()
            if reads:  # QEMU has what it wants
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_collapsed(group)
    finally:
        end.close()


async def _pack(stream: trio.lowlevel.FdStream, fd: int) -> None:
    import zstandard  # whoever packs nothing needs it not

    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    try:
        while piece := await stream.receive_some(_PIECE):
            await trio.to_thread.run_sync(_write, fd, packer.compress, piece)
        await trio.to_thread.run_sync(_write, fd, packer.flush)
    except OSError as error:
        raise StateBroken(error.strerror or str(error)) from error


def _write(fd: int, packing: Callable[..., bytes], *piece: bytes) -> None:
    view = memoryview(packing(*piece))
    while view:
        view = view[os.write(fd, view) :]


async def _unpack(stream: trio.lowlevel.FdStream, fd: int) -> None:
    import zstandard

    unpacker = zstandard.ZstdDecompressor().decompressobj()
    try:
        while piece := await trio.to_thread.run_sync(os.read, fd, _PIECE):
            await stream.send_all(await trio.to_thread.run_sync(unpacker.decompress, piece))
        if not unpacker.eof:
            raise StateBroken("the packed state ends in the middle")
        await stream.aclose()
    except trio.BrokenResourceError:
        return  # QEMU has ended, or has read enough: it says so itself
    except zstandard.ZstdError as error:
        raise StateBroken(f"the packed state is damaged: {error}") from error
    except OSError as error:
        raise StateBroken(error.strerror or os.strerror(errno.EIO)) from error
