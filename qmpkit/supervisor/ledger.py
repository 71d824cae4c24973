"""The ledger of a kept machine: its record, by which the next start finds the right images."""

from __future__ import annotations

import logging

import attrs
import trio

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.machine.ledger import Change
from qmpkit.operations.layers import STEP_GRACE
from qmpkit.operations.recovery import recover, settled
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept
from qmpkit.vm import VM

__all__ = ["KeptLedger", "carried_over", "finish_change", "recover_change"]

log = logging.getLogger("qmpkit.supervisor")


class KeptLedger:
    """Writes into the machine's record what is about to change, and what came of it."""

    def __init__(self, kept: Kept, journal: Journal) -> None:
        self._kept = kept
        self._journal = journal

    async def intend(self, change: Change) -> None:
        """See `Ledger`."""
        kept, before = self._kept, self._kept.record
        kept.note(spec=change.begun, change=change)
        if not await kept.write(self._journal):
            kept.note(spec=before.spec, change=before.change)
            assert kept.not_durable is not None
            raise kept.not_durable

    async def settle(self, spec: MachineSpec) -> None:
        """See `Ledger`."""
        self._kept.note(spec=spec, change=None)
        await self._kept.write(self._journal)


async def recover_change(kept: Kept, journal: Journal, vm: VM) -> None:
    """End or undo, on a machine that was found again, what its supervisor died in."""
    change = kept.record.change
    if change is None:
        return
    machine = vm.machine
    with trio.move_on_after(STEP_GRACE) as scope:
        async with machine.changing:
            try:
                if change.frozen and kept.spec.agent:
                    await vm.agent.thaw()
                spec = await recover(machine, change)
            except QmpkitError as error:
                kept.tell("differs", f"it was to {change.what}, and what came of it: {error}")
                return
            await KeptLedger(kept, journal).settle(spec)
            kept.tell("recovered", _told(change, spec))
    if scope.cancelled_caught:
        kept.tell("differs", f"it was to {change.what}, and gives no answer what came of it")


async def finish_change(kept: Kept) -> None:
    """The same for one whose QEMU is gone, before it is started again."""
    change = kept.record.change
    if change is None:
        return
    try:
        spec = await trio.to_thread.run_sync(settled, change)
    except OSError as error:
        what = f"machine {kept.name!r} was to {change.what}, and what came of it: {error}"
        raise HostLacks(what, "make its images readable, and their folder writable") from error
    kept.note(spec=spec, change=None)
    kept.tell("recovered", _told(change, spec))


def _told(change: Change, spec: MachineSpec) -> str:
    # What changes no spec (a backup) is never finished by anyone else.
    done = spec == change.spec and change.spec != change.begun
    return f"to {change.what}: that was interrupted, and is {'done' if done else 'undone'}"


def carried_over(wanted: MachineSpec, known: MachineSpec) -> MachineSpec:
    """*wanted*, a machine's new spec, with what was done to its disks since the one before.

    Its owner writes the files that he knows; what the guest has written since may be in
    layers above them, or where a disk was moved to.  Pure.
    """
    now = {disk.id: disk for disk in known.disks if disk.origin is not None}
    disks = [
        attrs.evolve(
            disk,
            file=now[disk.id].file,
            format=now[disk.id].format,
            node=now[disk.id].node,
            driver=now[disk.id].driver,
            make=None,
            origin=disk.file,
        )
        if disk.id in now and now[disk.id].origin == disk.file
        else disk
        for disk in wanted.disks
    ]
    return attrs.evolve(wanted, disks=disks, snapshots=known.snapshots, snapshot=known.snapshot)
