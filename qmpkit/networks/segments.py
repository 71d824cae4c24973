"""Segments: a switch process for each, and in its directory a port for every NIC."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.errors import HostLacks
from qmpkit.networks import _switch_main
from qmpkit.networks._switch_main import CABLE, DATAGRAMS
from qmpkit.networks.helpers import Command, Helpers, Members, Prepare
from qmpkit.process.places import Places, discard
from qmpkit.process.roots import HASH, hash_of
from qmpkit.process.rundir import SOCKET_PATH_LIMIT
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.network import DgramNic, Nic, StreamNic

__all__ = ["Segments"]

_PORT_LIMIT = 1 + 1 + 2 + HASH  # "/@p.<hash>"


class Segments:
    """Those of one supervisor."""

    def __init__(self, places: Places, helpers: Helpers) -> None:
        self._root = places.runtime / ".net"
        self._helpers = helpers

    def helper(self, join: Joined) -> tuple[str, Prepare]:
        """The name of its switch, and how it is started."""
        return f"the switch of network {join.name!r}", partial(_prepared, self.directory(join.name))

    async def sweep(self, members: Members) -> None:
        """Remove the directories of segments that nobody is in, whose switches have ended.

        And the ports of those who are no members: of a move that its supervisor did not survive.
        """
        kept = {self.directory(join.name) for _, join in members}
        ports = {self.port(*it, kind) for it in members for kind in ("", CABLE)}
        with suppress(OSError):
            for directory in set(self._root.iterdir()) - kept:
                discard(directory)
            for directory in kept:
                for path in set(directory.iterdir()) - ports:
                    if not path.name.startswith("."):
                        path.unlink(missing_ok=True)
            self._root.rmdir()

    async def make(self, member: str, join: Joined) -> None:
        """Have its switch running; raises HostLacks."""
        name, prepare = self.helper(join)
        await self._helpers.run(name, prepare)
        if not (self.directory(join.name) / DATAGRAMS).exists():  # somebody has removed it
            await self._helpers.end(name)
            await self._helpers.run(name, prepare)

    async def look(self, members: Members) -> list[tuple[str, Flaw]]:
        """What is not as it was made: QEMU binds its port when it starts, and never again."""

        def work() -> list[tuple[str, Flaw]]:
            return [(member, flaw) for member, join in members for flaw in self._lost(member, join)]

        return await trio.to_thread.run_sync(work)

    def _lost(self, member: str, join: Joined) -> Iterator[Flaw]:
        of = f"of network {join.name!r}"
        if not (self.directory(join.name) / DATAGRAMS).exists():
            yield Flaw(f"the socket of the switch {of}: removed", mendable=True)
        ports = [self.port(member, join, kind) for kind in ("", CABLE)]  # one it has joined by
        if not any(port.exists() for port in ports):
            yield Flaw(f"the port of {join.nic} {of}: removed ({ports[0]})", mendable=False)

    async def plugged(self, nic: Nic, member: str, join: Joined) -> tuple[Nic, None]:
        """The NIC with its port and the switch's."""
        switch = self.directory(join.name) / DATAGRAMS
        if isinstance(nic, StreamNic):
            _announce(switch)
            self.port(member, join).unlink(missing_ok=True)  # by which it had joined while it ran
            # It listens: one that connects would not do so again when the switch is another.
            port = self.port(member, join, CABLE)
            return attrs.evolve(nic, address=f"unix:{port}", server=True), None
        assert isinstance(nic, DgramNic), "the farm gives a segment's NIC one of these"
        local, remote = self.port(member, join), switch
        return attrs.evolve(nic, local=f"unix:{local}", remote=f"unix:{remote}"), None

    async def unplug(self, member: str, join: Joined) -> None:
        """Remove the member's port, which QEMU leaves behind."""
        for kind in ("", CABLE):
            with suppress(OSError):
                self.port(member, join, kind).unlink(missing_ok=True)

    async def remove(self, join: Joined) -> None:
        """End its switch, and nothing is left."""
        name, _ = self.helper(join)
        await self._helpers.end(name)
        discard(self.directory(join.name))
        with suppress(OSError):
            self._root.rmdir()

    def directory(self, network: str) -> Path:
        """Where its sockets are, whose paths fit."""
        plain = self._root / network
        if len(os.fsencode(plain)) + _PORT_LIMIT <= SOCKET_PATH_LIMIT:
            return plain
        return self._root / f"n.{hash_of(network)}"

    def port(self, member: str, join: Joined, kind: str = "") -> Path:
        """The socket of a member's NIC; *kind* is "" for datagrams, or CABLE."""
        plain = self.directory(join.name) / f"{kind}{member}.{join.nic}"
        if len(os.fsencode(plain)) <= SOCKET_PATH_LIMIT:
            return plain
        return plain.with_name(f"{kind}p.{hash_of(plain.name)}")


def _announce(switch: Path) -> None:
    """Tell the switch to look for who listens; one that is started later looks by itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.setblocking(False)
        sock.sendto(b"", str(switch))


def _prepared(directory: Path, stack: ExitStack) -> Command:
    """The socket is bound before the switch runs, so that nobody waits for it."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise HostLacks(
            "cannot start a switch: this Python does not know its own interpreter",
            "run the program with a Python interpreter that is installed",
        )
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    own = stack.enter_context(_bound(directory / DATAGRAMS))
    program = [sys.executable, "-I", "-S", _switch_main.__file__]
    return Command([*program, str(directory), "3"], {3: own.fileno()})


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)  # its directory is closed anyway
    except BaseException:
        sock.close()
        raise
    return sock
