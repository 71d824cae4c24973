"""What changes a kept machine's record without starting or stopping it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.block.at_rest import AtRest, at_rest
from qmpkit.operations.block.revert import overlaid, overlays_made
from qmpkit.operations.block.variables import store_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.following import with_forwards_of
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.ledger import KeptLedger, finish_change
from qmpkit.supervisor.networks import Networks
from qmpkit.supervisor.record import MATTERS, Record, Wanted, digest_of

__all__ = ["amend", "disks_at_rest", "down", "files_of", "matters", "revert", "take_back"]


def matters(record: Record | Wanted) -> dict[str, Any]:
    """What an owner says of a machine beside its spec."""
    return {name: getattr(record, name) for name in MATTERS}


async def amend(kept: Kept, wanted: Wanted, networks: Networks, journal: Journal) -> None:
    """See `Supervisor.amend`."""
    if faults := [*wanted.faults()]:
        raise SpecInvalid(faults, f"machine {kept.name!r}")
    joined = kept.record.wanting(wanted).joined
    if joined != kept.record.joined:  # how its networks are set up, not which they are
        await networks.make(kept.member, joined)
    before = kept.record
    spec = _amended(before.spec, wanted.spec)
    kept.note(spec=spec, asked=digest_of(wanted.spec), **matters(before.wanting(wanted)))
    if not await kept.write(journal):
        # Meanwhile its devices may have changed: only what was amended is taken back.
        spec = _amended(kept.spec, before.spec)
        kept.note(spec=spec, asked=before.asked, **matters(before))
        assert kept.not_durable is not None
        raise kept.not_durable


def _amended(spec: MachineSpec, other: MachineSpec) -> MachineSpec:
    """*spec* with what of *other* may change under a QEMU that is up."""
    nics = with_forwards_of(spec.nics, other.nics)
    return attrs.evolve(spec, nics=nics, description=other.description)


async def revert(
    kept: Kept, snapshot: str, journal: Journal, machines: Mapping[str, Kept], *, memory: bool
) -> tuple[str, ...]:
    """See `Supervisor.revert`."""
    await down(kept)
    change, left = await overlaid(kept.spec, snapshot, memory=memory)
    ledger = KeptLedger(kept, journal, machines)
    done = False
    try:
        await ledger.intend(change)
        await overlays_made(change)
        done = True
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await ledger.settle(change.spec if done else change.begun)
    kept.tell("reverted", f"to the snapshot {snapshot!r}")
    return left


async def take_back(kept: Kept, before: MachineSpec, journal: Journal) -> None:
    """Have one that is down start as before a revert, whose new layers go.  JournalFailed."""
    await down(kept)
    after = kept.spec
    kept.note(spec=before)
    if not await kept.write(journal):
        kept.note(spec=after)
        assert kept.not_durable is not None
        raise kept.not_durable
    await trio.to_thread.run_sync(_remove, files_of(after) - files_of(before))


def files_of(spec: MachineSpec) -> set[str]:
    """What a machine writes to: the tops of its disks, and its UEFI variables.  Pure."""
    files = {disk.file for disk in spec.disks if not disk.is_readonly and not disk.is_empty}
    return files | ({store} if (store := store_of(spec)) else set())


def _remove(files: set[str]) -> None:
    for file in files:
        Path(file).unlink(missing_ok=True)


@asynccontextmanager
async def disks_at_rest(
    kept: Kept, journal: Journal, machines: Mapping[str, Kept]
) -> AsyncIterator[AtRest]:
    """See `Supervisor.at_rest`."""
    await down(kept)
    async with at_rest(kept.spec, ledger=KeptLedger(kept, journal, machines)) as machine:
        yield machine


async def down(kept: Kept) -> None:
    """Raise SpecInvalid unless it is down; what was half done to it is ended or undone."""
    if kept.tended or kept.record.identity is not None:
        hint = f'declare({kept.name!r}, "stopped"), or qmpkit stop, first'
        raise SpecInvalid([Fault("", "it is up", hint)], f"machine {kept.name!r}")
    await finish_change(kept)
