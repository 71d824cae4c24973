"""The destination of a migration that another supervisor has, here or on another host."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import attrs
import trio

from qmpkit._trio import raise_failed
from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.end import Able, Ports
from qmpkit.operations.migration.errors import (
    CannotMigrate,
    MigrationFailed,
    MigrationUnknown,
    NotArrived,
)
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace
from qmpkit.operations.migration.remote_rest import RemoteRest, route_to
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.storage_there import Door
from qmpkit.operations.migration.tls import DISKS_TLS_ID, identified
from qmpkit.operations.migration.ways import Route, dialled
from qmpkit.operations.migration.wire import ANSWER, NotAsked, Refused, Wire, WireLost, greeted
from qmpkit.operations.steps import STEP_GRACE

__all__ = ["RemoteEnd", "asked_what_came"]

BEAT = 5.0
"""Seconds between two signs of life while memory is on its way; the other side waits longer."""

_GOODBYE = 3.0


async def asked_what_came(wire: Wire, place: MovePlace, ident: str, who: str) -> str:
    """What has come of a move, as its destination knows: "runs", "ran", "ended", "discarded".

    WireLost too when it is not *who* the machine was moving to.
    """
    await greeted(wire, on_another_host=bool(place.host))
    told = await wire.ask("settle", id=ident)
    if told.get("who") != who:
        raise WireLost("another supervisor answers there, or one that has lost its memory")
    return str(told.get("outcome"))


class RemoteEnd:
    """An `End` at *place* for the machine *name*, by a conversation that has begun.

    `has_arrived`: its guest is there.  `cables`: there are none.  `who`: the mark of the
    supervisor that it was offered to.
    """

    def __init__(
        self,
        wire: Wire,
        place: MovePlace,
        name: str,
        moves: tuple[DiskMove, ...] = (),
        *,
        collapse: bool = False,
    ) -> None:
        self.moves = moves
        self.collapse = collapse
        self.cables: Collection[str] = ()
        self.pauses = True  # its answers come while the rest is sent
        self.has_arrived = False
        self.who = ""
        self._wire = wire
        self._place = place
        self._name = name
        self._able = Able({}, {})
        self._lost = ""
        self._patience = 2 * ANSWER
        self._spent = False
        self._is_deciding = False
        self._rest: RemoteRest | None = None

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return str(self._place)

    @property
    def outcome(self) -> str:
        """What has come of one whose memory was at both ends, by the other side's word."""
        return "" if self._rest is None else self._rest.outcome

    @asynccontextmanager
    async def offered(self, offer: Mapping[str, Any]) -> AsyncIterator[None]:
        """The block in which a QEMU waits there; both sides show that they live.

        Raises CannotMigrate with all that is in the way there, MigrationFailed.
        """
        found = await self._ask("offer", offer=offer, patience=2 * ANSWER)
        self._able, self.who = _able(found), str(found.get("who"))
        self._rest = RemoteRest(self._place, self._name, offer["id"], self.who, self._wire)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # what failed in a shielded hand-over tells more
            raise_failed(group)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(BEAT)
            if self._has_begun:  # it does all that is left
                return
            try:
                await self._ask("beat")
            except MigrationFailed:
                if (
                    self._is_deciding or self._has_begun
                ):  # by now it is over, or `run` says what came of it
                    return
                raise

    @property
    def _has_begun(self) -> bool:
        return self._rest is not None and self._rest.has_begun

    async def _ask(self, what: str, /, patience: float = ANSWER, **more: Any) -> dict[str, Any]:
        try:
            return await self._wire.ask(what, patience=patience, **more)
        except WireLost as lost:
            self._lost = lost.why
            raise MigrationFailed(self._name, f"{self._place}: {lost.why}") from lost
        except SpecInvalid as invalid:
            where = [
                attrs.evolve(it, message=f"at {self._place}: {it.message}") for it in invalid.faults
            ]
            raise CannotMigrate(self._name, where) from invalid
        except (Refused, HostLacks) as refused:
            raise MigrationFailed(self._name, f"{self._place}: {refused}") from refused

    def must_wait(self) -> None:
        """See `End`."""
        if self._spent or self._lost:
            raise NotArrived(self._name)

    def take(self) -> None:
        """See `End`."""
        self.must_wait()
        self._spent = True

    def has_ended(self) -> MigrationFailed:
        """See `End`."""
        return MigrationFailed(self._name, f"{self._place}: {self._lost or 'its QEMU has ended'}")

    def is_like(self, source: Machine) -> bool:
        """See `End`: nobody knows here."""
        return False

    async def able(self, *, words: bool) -> Able:
        """See `End`."""
        return self._able

    def watched(self) -> AbstractContextManager[None]:
        """See `End`: the other side does."""
        return nullcontext()

    async def set_up(
        self, setting: Setting, options: MigrationOptions, moves: Sequence[DiskMove]
    ) -> None:
        """See `End`."""
        self._patience = options.max_downtime + 2 * ANSWER
        names = ("channels", "compression", "recover_within")
        plain: dict[str, Any] = {name: getattr(options, name) for name in names}
        if self._rest is not None:
            self._rest.within = options.recover_within
        bitmaps = {move.id: list(move.bitmaps) for move in moves}
        await self._ask("set_up", capabilities=setting, options=plain, bitmaps=bitmaps)

    @asynccontextmanager
    async def served(self, source: Machine) -> AsyncIterator[Door]:
        """See `End`."""
        if not self._place.host:
            path = route_to(self._place, await self._ask("disks"), self._name)
            yield Door(server={"type": "unix", "path": path.removeprefix("unix:")})
            return
        assert self._place.tls is not None, "which `move_place` has made sure"
        async with identified(source, self._place.tls, "client", id=DISKS_TLS_ID):
            port = route_to(self._place, await self._ask("disks"), self._name).rpartition(":")[2]
            server = {"type": "inet", "host": self._place.host, "port": port}
            yield Door(server=server, tls=DISKS_TLS_ID)

    async def alike(self) -> None:
        """See `End`."""
        await self._ask("alike")

    @asynccontextmanager
    async def laid(
        self, options: MigrationOptions, source: Machine, *, mapped: bool
    ) -> AsyncIterator[Route]:
        """See `End`."""
        if not self._place.host:
            yield Route(route_to(self._place, await self._ask("listen"), self._name))
            return
        async with dialled(options, source):
            yield Route(route_to(self._place, await self._ask("listen"), self._name))

    async def load(self, uri: str) -> None:
        """See `End`: nobody sends by a file to another supervisor."""
        raise MigrationFailed(self._name, f"{uri} is not to be had at {self._place}")

    async def loaded(self) -> None:
        """See `End`."""
        until = trio.current_time() + self._patience
        while not (await self._ask("loaded")).get("loaded"):
            if trio.current_time() > until:
                why = f"{self._place}: it has not loaded all in {self._patience:g} s"
                raise MigrationFailed(self._name, why)

    async def examine(self) -> None:
        """See `End`: the other side has, before it says that it is loaded."""
        await trio.lowlevel.checkpoint()

    async def open_ports(self, ports: Ports) -> None:
        """See `End`."""
        if ports:
            plain = {nic: [attrs.asdict(it) for it in forwards] for nic, forwards in ports.items()}
            await self._ask("ports", ports=plain)

    async def run(self, *, runs: bool) -> float | None:
        """See `End`.  The answer comes a moment after the guest's first instruction."""
        self._is_deciding = True
        try:
            answer = await self._wire.ask("run", runs=runs, patience=2 * STEP_GRACE)
        except NotAsked as lost:
            raise self.has_ended() from lost
        except WireLost as lost:
            raise MigrationUnknown(self._name, lost.why, str(self._place)) from lost
        except (Refused, HostLacks, SpecInvalid) as refused:
            raise MigrationFailed(self._name, f"{self._place}: {refused}") from refused
        if why := answer.get("unknown"):
            raise MigrationUnknown(self._name, str(why), str(self._place))
        return time.monotonic() if runs else None

    def arrived(self) -> None:
        """See `End`."""
        self.has_arrived = True

    def rest(self) -> RemoteRest | None:
        """See `End`."""
        return self._rest

    async def discard(self, *, patience: float) -> str:
        """See `End`.  One that does not hear it ends its QEMU when the connection has closed.

        Of one that runs there already only the other side can tell what comes of it:
        MigrationUnknown when it does not.
        """
        if self._rest is not None and self._rest.has_begun:
            outcome = await self._rest.give_up()
            self.has_arrived = outcome in ("runs", "ran", "lost")
            if not outcome and self._rest.was_told:
                why = "its memory was at both ends, and the other side cannot be asked"
                raise MigrationUnknown(self._name, why, str(self._place))
            return ""
        said = ""
        with trio.move_on_after(patience + _GOODBYE):
            try:
                answer = await self._wire.ask("discard", patience=patience + _GOODBYE)
                said = str(answer.get("said", ""))
            except (WireLost, Refused, SpecInvalid):
                pass
        await self._wire.close()
        return said


def _able(plain: Mapping[str, Any]) -> Able:
    """What a peer says of its QEMU, as far as it makes sense."""
    words = [it for it in _list(plain.get("words")) if isinstance(it, dict) and it.keys() >= _WORD]
    capabilities = dict.fromkeys(map(str, _list(plain.get("capabilities"))), False)
    parameters = dict.fromkeys(map(str, _list(plain.get("parameters"))))
    return Able(capabilities, parameters, words)


_WORD = {"cpuid-input-eax", "cpuid-register", "features"}


def _list(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
