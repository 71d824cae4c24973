"""What a `Supervisor` does to one of its kept machines beside starting and stopping it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace, move_place
from qmpkit.operations.migration.storage import SHARED, DiskPlaces
from qmpkit.operations.migration.transfer import Told
from qmpkit.spec.farm import Flaw
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic
from qmpkit.supervisor.declaring import refuse_unsettled
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.moves.departures import Whereabouts, place_of, settle
from qmpkit.supervisor.moves.sending import check_send, send
from qmpkit.supervisor.moves.terms import ReceiveTerms
from qmpkit.supervisor.moves.within import faults_of_move, move
from qmpkit.supervisor.record import Leaving

__all__ = ["Changes"]


class Changes(ABC):
    """The part of a supervisor that changes a machine that it keeps: disks, networks, process."""

    name: str

    def layers_of(self, name: str) -> MachineSpec | None:
        """A spec with the disks of a machine as they are now, also of one that is forgotten."""
        return self._kept_machines().layers_of(name)

    def at_rest(self, name: str) -> AbstractAsyncContextManager[AtRest]:
        """`async with supervisor.at_rest(name) as machine:` the disks of one that is down.

        As `qmpkit.at_rest`, and its record follows what is done.  It cannot be started
        meanwhile.  Raises SpecInvalid when it is up, or for an unknown name.
        """
        return self._kept_machines().at_rest(name)

    async def join(self, name: str, network: str, *, mac: str | None = None) -> Nic:
        """Plug a NIC into a kept machine that runs, in a network that machines here are in.

        It is there again after a restart, until `leave`.  Raises as `vm.nics.add`, and
        HostLacks for what the network lacks; failed or cancelled, nothing is left.
        """
        keeper = self._kept_machines()
        return await keeper.joining.join(keeper.known(name), network, mac=mac)

    async def leave(self, name: str, nic: str, *, grace: float = UNPLUG_GRACE) -> None:
        """Unplug a NIC as `vm.nics.remove` does, with its place in the network it has joined."""
        keeper = self._kept_machines()
        await keeper.joining.leave(keeper.known(name), nic, grace=grace)

    async def network_flaws(self) -> dict[str, tuple[Flaw, ...]]:
        """What is not as it was made of the networks of kept machines, by the machine's name.

        Somebody may have removed a bridge, say.  Of those that run and are not moving: whoever
        starts has its networks made.  Nothing is changed.
        """
        return await self._kept_machines().joining.flaws()

    async def mend_networks(self, name: str) -> None:
        """Have those made anew that a kept machine is in, as far as that goes while it runs.

        What is left then takes a restart.  Raises SpecInvalid for an unknown name, HostLacks.
        """
        keeper = self._kept_machines()
        await keeper.joining.mend(keeper.known(name))

    async def revert(self, name: str, snapshot: str, *, memory: bool = True) -> tuple[str, ...]:
        """Have a kept machine that is down start from a snapshot of its disks the next time.

        With one that has the RAM in a file the guest goes on where it was, unless *memory* is
        false: then it boots.  A start whose machine is not as it was then raises LaunchFailed.

        Each disk that is in it gets a new layer above the snapshot's file.  What the guest has
        written since is in the files that are given back, which stay, and nobody uses any more.

        Raises SpecInvalid when it is up or saved, for an unknown name or snapshot, for one that
        the images hold with the RAM (start the machine paused, and `vm.snapshots.load` it);
        ImageFailed, JournalFailed.  Failed or cancelled, it starts as it would have before.
        """
        return await self._kept_machines().revert(name, snapshot, memory=memory)

    async def migrate(
        self,
        name: str,
        *,
        qemu: str | os.PathLike[str] | None = None,
        to: str | MovePlace | None = None,
        policy: str | Policy = "live",
        options: MigrationOptions | None = None,
        progress: Told | None = None,
        disks: DiskPlaces = SHARED,
        collapse: bool = False,
    ) -> Migrated:
        """Move a kept machine's guest to a new process, of another *qemu* for instance.

        As `VM.migrate`; `Kept.vm` is another one then.  *disks*, *collapse*: those that go along
        into new images, as for `receiving`; its record names them once it runs on them.
        Whoever dies meanwhile, us included, one machine is left, which the next supervisor
        finds; by postcopy it has the rest of the memory come.  A guest that is lost so is started
        again by its policy.  Declared stopped meanwhile, it stays (MigrationFailed) and is stopped;
        when it runs in the new process already the rest is waited for, but by a stop at once.
        In the networks of its farm the new process has cables of its own, which hear nothing before
        the guest stands still (`object-del`); not by vhost.

        *to*: another supervisor instead, which keeps it from then on: the name of a farm of
        this host, "unix:PATH", or a `MovePlace` (`move_place`) on another host.  It finds the disks
        where they are here, or makes the images of those that go along.  When the guest runs
        there its record here is forgotten, with its logs.  MigrationUnknown when the last
        answer was lost and nobody can be asked: then it stands still, and `settle` asks again.
        By postcopy also when, with memory at both ends, the other side cannot be asked for longer
        than `recover_within`, and no memory goes either; MigrationLost says in `place` whose the
        machine is that is lost.

        Raises SpecInvalid for an unknown name, MachineGone when it is down, MachineMoving when it
        moves already, JournalFailed, HostLacks.
        """
        keeper = self._kept_machines()
        kept = keeper.known(name)
        _refuse_moving(kept)
        if to is None:
            async with kept.turn:
                means = keeper.means
                return await move(kept, means, qemu, policy, options, progress, disks, collapse)
        _refuse_qemu(name, qemu)
        place = await self._other(to)
        async with kept.turn:
            refuse_unsettled(kept)
            means = keeper.means
            return await send(kept, means, place, policy, options, progress, disks, collapse)

    async def migration_faults(
        self,
        name: str,
        to: str | MovePlace | None = None,
        *,
        qemu: str | os.PathLike[str] | None = None,
        disks: DiskPlaces = SHARED,
        collapse: bool = False,
    ) -> tuple[Fault, ...]:
        """All that is in the way of its moving there, at both ends; () is fine.

        *qemu*, *disks*, *collapse* as for `migrate`.  At another supervisor a QEMU waits for a
        moment, to tell what its processor has; else nothing is started, and that is not known.
        """
        kept = self._kept_machines().known(name)
        if to is None:
            return await faults_of_move(kept, qemu, disks, collapse=collapse)
        _refuse_moving(kept)
        _refuse_qemu(name, qemu)
        place = await self._other(to)
        async with kept.turn:
            refuse_unsettled(kept)
            return await check_send(kept, place, disks, collapse=collapse)

    async def settle(
        self, name: str, *, to: str | MovePlace | None = None, here: bool = False
    ) -> Whereabouts:
        """Find out where a machine is whose move has come to an unknown end, and act on it.

        The supervisor that it was moving to is asked, at *to* when it is to be found elsewhere
        by now.  THERE: it is forgotten here.  HERE: it goes on.  UNKNOWN: nothing is done, for
        nobody can tell.  *here*: your own word for it, unasked: it does not run there, and
        never will.  Raises SpecInvalid when it was not moving.
        """
        keeper = self._kept_machines()
        kept = keeper.known(name)
        if kept.record.leaving is None:
            raise SpecInvalid([Fault("", "it was not moving")], f"machine {name!r}")
        place = await (_placed_of(kept.record.leaving) if to is None else _placed(to))
        async with kept.turn:
            return await settle(kept, keeper.means, place, here=here)

    async def receive(
        self, stream: trio.abc.Stream, *, terms: ReceiveTerms | None = None
    ) -> str | None:
        """Take in a machine that another supervisor sends (`migrate` with `to`); its name.

        *stream*: its connection.  Without *terms* it is one of this user and host, by a unix
        socket that nobody else can reach; with them it comes by TLS, checked on both sides.
        None: nothing has come of it, and nothing of it is left.  Cancelled before it runs
        here, too.
        """
        return await self._kept_machines().receiving.receive(stream, terms)

    async def _other(self, to: str | MovePlace) -> MovePlace:
        place = await _placed(to)
        if place.farm and place.farm == self.name:
            raise SpecInvalid([Fault("to", f"{place.farm!r} has it already")], "where to migrate")
        return place

    @abstractmethod
    def _kept_machines(self) -> Keeper: ...


def _refuse_moving(kept: Kept) -> None:
    """At once: it would wait for a move that may take hours."""
    if kept.vm is not None:
        kept.vm.machine.changing.must_stay()


def _refuse_qemu(name: str, qemu: object) -> None:
    if qemu is not None:
        fault = Fault("qemu", "the other side has its own: it is the one of the spec")
        raise SpecInvalid([fault], f"machine {name!r}")


async def _placed(to: str | MovePlace) -> MovePlace:
    return to if isinstance(to, MovePlace) else await trio.to_thread.run_sync(move_place, to)


async def _placed_of(leaving: Leaving) -> MovePlace:
    return await trio.to_thread.run_sync(place_of, leaving)
