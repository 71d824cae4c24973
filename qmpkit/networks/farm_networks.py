"""The networks of a supervisor's machines: made when the first is in one, removed with the last."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit.networks.bridges import Bridges
from qmpkit.networks.helpers import Members, Prepare, helpers
from qmpkit.networks.segments import Segments
from qmpkit.process.places import Places
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_networks import Bridge, Segment, is_carried
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic

__all__ = ["FarmNetworks", "Plugged"]

UNDO_GRACE = 10.0
"""Seconds that taking back a network may take whose making has failed."""


class Carrier(Protocol):
    """One kind of networks."""

    def helper(self, join: Joined) -> tuple[str, Prepare] | None:
        """The program that carries it, if it is one."""

    async def sweep(self, members: Members) -> None:
        """Remove what is left of networks and places that are not among *members*."""

    async def make(self, member: str, join: Joined) -> None:
        """Have it, and a member's place in it; done again, it does nothing."""

    async def look(self, members: Members) -> list[tuple[str, Flaw]]:
        """What is not as it was made, with whose it is: of *members* that run."""

    async def plugged(self, nic: Nic, member: str, join: Joined) -> tuple[Nic, int | None]:
        """A member's NIC, plugged in, and the descriptor of its device if it takes one."""

    async def unplug(self, member: str, join: Joined) -> None:
        """Remove a member's place in it."""

    async def remove(self, join: Joined) -> None:
        """Nobody is in it any more."""


@attrs.frozen
class Plugged:
    """A spec with its NICs plugged in, and the descriptors that its start hands over, by NIC id."""

    spec: MachineSpec
    links: Mapping[str, int] = attrs.field(factory=dict)


class FarmNetworks:
    """Makes the networks of farm files, as `Supervisor` wants it (`supervisor.networks.Networks`).

    A segment is a switch process: it outlives its supervisor as the machines do, and
    whoever supervises them next adopts it.  A bridge is made, or used, with a tap for every
    NIC; a range of addresses is given away by a dnsmasq.  `nat` needs nothing.
    """

    def __init__(self) -> None:
        self._carriers: dict[type, Carrier] = {}
        self._joined: dict[str, tuple[Joined, ...]] = {}
        self._turns: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    @asynccontextmanager
    async def open(
        self, places: Places, members: Mapping[str, Sequence[Joined]], *, complete: bool = True
    ) -> AsyncIterator[None]:
        """See `Networks.open`."""

        def log_of(name: str) -> Path:
            word = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")
            return places.logs(".networks") / f"{word}.log"

        async with helpers(places.state, log_of) as programs:
            self._carriers = {
                Segment: Segments(places, programs),
                Bridge: Bridges(places, programs),
            }
            self._joined = {name: tuple(_carried(joined)) for name, joined in members.items()}
            found = (self._of(join).helper(join) for _, join in self._members())
            await programs.found(dict(filter(None, found)), end_others=complete)
            for kind, carrier in self._carriers.items() if complete else ():
                await carrier.sweep([it for it in self._members() if type(it[1].network) is kind])
            yield

    async def make(self, member: str, joined: Sequence[Joined]) -> None:
        """See `Networks.make`; networks that it was in before are left."""
        wanted, before = tuple(_carried(joined)), self._joined.get(member, ())
        self._joined[member] = wanted  # from here on nobody removes them
        try:
            await self._leave(member, before, but=wanted)  # first: a tap may serve another NIC
            for join in wanted:
                async with self._turns[join.name]:
                    await self._of(join).make(member, join)
        except BaseException:
            self._joined[member] = before
            with trio.move_on_after(UNDO_GRACE, shield=True):
                await self._leave(member, wanted, but=before)
            raise

    async def look(self, members: Mapping[str, Sequence[Joined]]) -> dict[str, tuple[Flaw, ...]]:
        """See `Networks.look`."""
        await trio.lowlevel.checkpoint()
        places = [(name, join) for name, joined in members.items() for join in _carried(joined)]
        found: defaultdict[str, tuple[Flaw, ...]] = defaultdict(tuple)
        for kind, carrier in self._carriers.items():
            if of_kind := [it for it in places if type(it[1].network) is kind]:
                for name, flaw in await carrier.look(of_kind):
                    found[name] += (flaw,)
        return found

    @asynccontextmanager
    async def plugged(
        self, spec: MachineSpec, joined: Sequence[Joined], member: str
    ) -> AsyncIterator[Plugged]:
        """See `Networks.plugged`."""
        places = {join.nic: join for join in _carried(joined)}
        if not places:
            yield Plugged(spec, {})
            return
        links: dict[str, int] = {}
        nics = []
        with ExitStack() as ours:
            for nic in spec.nics:
                if join := places.get(nic.id):
                    nic, fd = await self._of(join).plugged(nic, member, join)
                    if fd is not None:
                        ours.callback(os.close, fd)
                        links[nic.id] = fd
                nics.append(nic)
            yield Plugged(attrs.evolve(spec, nics=nics), links)

    async def drop(self, member: str, joined: Sequence[Joined]) -> None:
        """See `Networks.drop`."""
        left = {*self._joined.pop(member, ()), *_carried(joined)}
        await self._leave(member, left, but=())

    async def _leave(self, member: str, joined: Iterable[Joined], *, but: Sequence[Joined]) -> None:
        stays = {(_place(join), join.nic) for join in but}
        for join in joined:
            if (_place(join), join.nic) in stays:
                continue
            async with self._turns[join.name]:
                await self._of(join).unplug(member, join)
                if _place(join) not in (_place(other) for _, other in self._members()):
                    await self._of(join).remove(join)

    def _members(self) -> Iterator[tuple[str, Joined]]:
        return ((name, join) for name, joined in self._joined.items() for join in joined)

    def _of(self, join: Joined) -> Carrier:
        return self._carriers[type(join.network)]


def _carried(joined: Iterable[Joined]) -> Iterable[Joined]:
    return (join for join in joined if is_carried(join.network))


def _place(join: Joined) -> tuple[str, type, str]:
    """Which network it is, whatever else has changed of it."""
    bridge = join.network.bridge if isinstance(join.network, Bridge) else ""
    return join.name, type(join.network), bridge
