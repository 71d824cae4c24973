"""The ledger of a kept machine: its record, by which the next start finds the right images."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, HostLacks, QmpkitError, SpecInvalid
from qmpkit.host.chain import walk_chain
from qmpkit.machine.ledger import Change
from qmpkit.machine.links import set_links
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.agent_freeze import THAW_GRACE
from qmpkit.operations.block.recovery import recover, settled, untagged
from qmpkit.operations.hotplug.recovery import changes_memory, recover_memory, recover_parts
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.following import following, with_forwards_of
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.macs import Member, double_faults, others_of
from qmpkit.vm import VM

__all__ = ["KeptLedger", "finish_change", "recover_change"]

log = logging.getLogger("qmpkit.supervisor")


class KeptLedger:
    """Writes into the machine's record what is about to change, and what came of it.

    What its owner may amend at the same time is not touched.
    *machines* are all that the supervisor keeps.
    """

    lasting = True
    fleeting: Path | None = None
    borrowed: Path | None = None

    def __init__(self, kept: Kept, journal: Journal, machines: Mapping[str, Kept]) -> None:
        self._kept = kept
        self._journal = journal
        self._machines = machines
        self._begun = False

    async def intend(self, change: Change) -> None:
        """See `Ledger`."""
        kept, before = self._kept, self._kept.record
        if before.change is not None and not self._begun:
            message = f"it was to {before.change.what}, and what came of it is not known"
            fault = Fault("", message, "restart it, or the supervisor, which finds out")
            raise SpecInvalid([fault], f"machine {kept.name!r}")
        # Here, where nothing is waited for: of two at the same time the second one sees the first.
        had = {nic.id for nic in change.begun.nics}
        coming = [nic for nic in change.spec.nics if nic.id not in had]
        others = others_of(kept, self._machines) if coming else []
        if faults := [*double_faults(Member(before), coming, others)]:
            raise SpecInvalid(faults, f"machine {kept.name!r}")
        kept.note(spec=following(kept.spec, change.begun, change.begun), change=change)
        self._begun = True
        if not await kept.write(self._journal):
            kept.note(spec=_as_before(kept.spec, before.spec), change=before.change)
            self._begun = before.change is not None
            assert kept.not_durable is not None
            raise kept.not_durable

    async def settle(self, spec: MachineSpec) -> bool:
        """See `Ledger`."""
        change = self._kept.record.change
        before = spec if change is None else change.begun
        self._kept.note(spec=following(self._kept.spec, before, spec), change=None)
        self._begun = False
        return await self._kept.write(self._journal)

    async def users_of(self, files: Sequence[str]) -> list[str]:
        """See `Ledger`."""
        others = [kept.spec for kept in self._machines.values() if kept is not self._kept]
        return await trio.to_thread.run_sync(_users, others, [Path(file) for file in files])


def _users(specs: Sequence[MachineSpec], files: Sequence[Path]) -> list[str]:
    """The machines that have one of *files* in the chain of a disk.  Blocking."""
    inodes = {identity for file in files if (identity := _identity(file)) is not None}
    found = []
    for spec in specs:
        chains = (walk_chain(Path(it.file), it.format) for it in spec.disks if not it.is_empty)
        if any(_identity(layer.path) in inodes for chain in chains for layer in chain.layers):
            found.append(spec.name)
    return found


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _as_before(spec: MachineSpec, before: MachineSpec) -> MachineSpec:
    """*before*, but for what was amended since.  Pure."""
    nics = with_forwards_of(before.nics, spec.nics)
    return attrs.evolve(before, description=spec.description, nics=nics)


async def recover_change(kept: Kept, ledger: KeptLedger, vm: VM) -> None:
    """End or undo, on a machine that was found again, what its supervisor died in."""
    change = kept.record.change
    if change is None:
        return
    if change.frozen and kept.spec.agent:
        with trio.move_on_after(THAW_GRACE), suppress(QmpkitError):  # the guest may be down
            await vm.agent.thaw()
    machine = vm.machine
    with trio.move_on_after(STEP_GRACE) as scope:
        async with machine.changing:
            try:
                spec = await _recovery_of(change)(machine, change)
            except QmpkitError as error:
                kept.tell("differs", f"it was to {change.what}, and what came of it: {error}")
                return
            await ledger.settle(spec)
            await set_links(machine, also_up=True)
            kept.tell("recovered", _told(change, spec))
    if scope.cancelled_caught:
        kept.tell("differs", f"it was to {change.what}, and gives no answer what came of it")


def _recovery_of(change: Change) -> Callable[[Changeable, Change], Awaitable[MachineSpec]]:
    if change.coming or change.going:
        return recover_parts
    return recover_memory if changes_memory(change) else recover


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
    if change.tag and spec == change.begun:
        try:
            await untagged(change)
        except QmpkitError as error:  # no reason not to start it
            log.warning("the snapshot %r is left in an image: %s", change.tag, error)
    kept.note(spec=following(kept.spec, change.begun, spec), change=None)
    kept.tell("recovered", _told(change, spec))


def _told(change: Change, spec: MachineSpec) -> str:
    # What changes no spec (a backup) is never finished by anyone else.
    done = spec == change.spec and change.spec != change.begun
    return f"to {change.what}: that was interrupted, and is {'done' if done else 'undone'}"
