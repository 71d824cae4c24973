"""Taking machines of a farm down: stopped in order, forgotten, their disks left or removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit._trio import finished_within, in_thread
from qmpkit.errors import Fault, QmpkitError, SpecInvalid
from qmpkit.farm.needed import Needed, deletable, unlink_all
from qmpkit.farm.outcome import Outcome, Progress, Result, Tell
from qmpkit.farm.saved import save_farm
from qmpkit.farm.seeds import seed_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.known_hosts import forget_key, known_hosts_in
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.suggest import suggestion
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["Loss", "disks_to_delete", "down", "lost_by_down", "of_farm", "removed"]

log = logging.getLogger(__name__)


def of_farm(lab: Supervisor) -> dict[str, FarmMachine]:
    """The kept machines that come from a farm's file, as it had them when they came up."""
    return {name: kept.record.farm for name, kept in lab.kept.items() if kept.record.farm}


async def down(
    lab: Supervisor,
    *,
    names: Sequence[str] | None = None,
    grace: float | None = None,
    deadline: float = float("inf"),
    delete_disks: bool = False,
    tell: Tell = lambda progress: None,
) -> Outcome:
    """Stop the machines of the farm, the last to start first, and forget them.

    *names*: only those.  *grace*: seconds that each guest has to power down (default: the
    supervisor's), *deadline* seconds for all, after which the rest is ended at once.  What a
    program keeps in the same supervisor stays.  Disks stay too, and `up` uses them again:
    only with *delete_disks* the files are removed that `make` had made and that no other
    kept machine uses, and with them the keys by which ssh knows the guests.  A machine with one
    that some other QEMU has open is not forgotten.  What a machine was saved with is discarded:
    `lost_by_down` tells before.

    A machine that cannot be stopped is told of and stays; the others go on.  Raises
    SpecInvalid for a name the farm does not have.  Cancelled, what was begun is still
    stopped, and not forgotten; one that is forgotten by then takes its disks along.
    """
    results = await removed(
        lab,
        _chosen(lab, names),
        grace=grace,
        deadline=deadline,
        delete_disks=delete_disks,
        tell=tell,
    )
    if not of_farm(lab):
        await save_farm(lab.state_dir, None)
    return Outcome({result.name: result for result in results})


def _chosen(lab: Supervisor, names: Sequence[str] | None) -> tuple[str, ...]:
    known = of_farm(lab)
    if names is not None and (strange := [name for name in names if name not in known]):
        faults = [
            Fault(name, "no machine of the farm", _cure(lab, name, known)) for name in strange
        ]
        raise SpecInvalid(faults, f"farm {lab.name!r}")
    return tuple(known if names is None else dict.fromkeys(names))


def _cure(lab: Supervisor, name: str, known: Iterable[str]) -> str:
    beside = f"`qmpkit stop {name}`, then `qmpkit rm {name}`"
    return beside if name in lab.kept else suggestion(name, known)


async def disks_to_delete(
    lab: Supervisor, names: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """What `down(delete_disks=True)` would remove: the files there are, of each machine.

    Raises SpecInvalid for a name the farm does not have.
    """
    chosen = _chosen(lab, names)
    others = {name: kept.spec for name, kept in lab.kept.items() if name not in chosen}
    made = {name: _made(lab.kept[name]) for name in chosen}

    def there() -> dict[str, list[str]]:
        needed = Needed()
        needed.look(others)
        return {
            name: [file for file in files if file not in needed and os.path.lexists(file)]
            for name, files in made.items()
        }

    return await trio.to_thread.run_sync(there)


@attrs.frozen
class Loss:
    """What is gone for good with one machine: files of disks, and the RAM it was saved with."""

    disks: list[str] = attrs.field(factory=list)
    memory: bool = False


async def lost_by_down(
    lab: Supervisor, names: Sequence[str] | None = None, *, delete_disks: bool = False
) -> dict[str, Loss]:
    """What `down` would lose of each machine.  Raises SpecInvalid as it does."""
    chosen = _chosen(lab, names)
    disks = await disks_to_delete(lab, chosen) if delete_disks else {}
    return {
        name: Loss(disks.get(name, []), lab.saved_in(name) is not None)
        for name in chosen
        if name in lab.kept
    }


async def removed(
    lab: Supervisor,
    names: Iterable[str],
    *,
    grace: float | None,
    deadline: float = float("inf"),
    delete_disks: bool = False,
    tell: Tell,
) -> list[Result]:
    """Stop and forget *names*, which are kept machines of the farm; how each went."""

    def told(name: str, done: int, total: int) -> None:
        tell(Progress(name, "stopped", done, total))

    drained = await lab.stop_kept(names, powerdown_grace=grace, deadline=deadline, told=told)
    needed = Needed()
    results = []
    for one in drained:
        if one.failure is not None:
            results.append(Result(one.name, "failed", str(one.failure)))
            continue
        results.append(await _forgotten(lab, one.name, needed if delete_disks else None))
    return results


async def _forgotten(lab: Supervisor, name: str, needed: Needed | None) -> Result:
    """With the disks of which none of *needed* has need; None: all stay."""
    others = {other: kept.spec for other, kept in lab.kept.items() if other != name}
    made = [] if needed is None else _made(lab.kept[name])
    told = ["what it was saved with is discarded"] if lab.saved_in(name) else []

    def look() -> list[str]:
        if not made or needed is None:
            return []
        needed.look(others)
        return deletable(made, needed)

    try:
        going = await trio.to_thread.run_sync(look)
        await lab.forget(name, disks=needed is not None)
    except (QmpkitError, OSError) as error:
        return Result(name, "failed", f"it is stopped, and not forgotten: {error}")
    deleted, left = await _cleared(lab.state_dir, name, None if needed is None else going)
    if left:
        return Result(name, "failed", f"it is forgotten, and these stay: {', '.join(left)}")
    told += [f"deleted {', '.join(deleted)}"] if deleted else []
    return Result(name, "removed", "; ".join(told))


async def _cleared(
    state: Path, name: str, disks: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Which *disks* of a machine that is forgotten are gone, and what stays, each with why.

    None: the disks stay.  A cancellation comes after it, for nobody knows any more by then what
    there is to delete.
    """
    async with finished_within(STEP_GRACE):
        try:
            return await in_thread(partial(_deleted, state, name, disks), abandon_on_cancel=True)
        except trio.Cancelled:
            files = ", ".join(map(str, (seed_of(state, name), *(disks or ()))))
            log.warning("machine %r is forgotten, and these may stay: %s", name, files)
            raise
        except OSError as error:
            return [], [f"{seed_of(state, name)} and its disks ({error.strerror})"]


def _deleted(state: Path, name: str, disks: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Its seed, which may hold secrets; with its disks the key that its guest had made there."""
    _, left = unlink_all([str(seed_of(state, name))])
    if disks is None:
        return [], left
    gone, stuck = unlink_all(disks)
    keys = known_hosts_in(state)
    try:
        if not stuck:
            forget_key(keys, name)
    except OSError as error:
        left.append(f"its ssh key in {keys} ({error.strerror})")
    return gone, left + stuck


def _made(kept: Kept) -> list[str]:
    """The disks that `make` has made, with the layers that were put above them since."""
    asked = kept.spec if kept.record.farm is None else kept.record.farm.spec
    files = {str(Path(disk.file).absolute()) for disk in asked.disks if disk.make is not None}
    made = {disk.id for disk in kept.spec.disks if (disk.origin or disk.file) in files}
    found = [os.fspath(disk.file) for disk in kept.spec.disks if disk.id in made]
    for point in kept.spec.snapshots:
        found += [file for disk, file in point.disks.items() if disk in made]
        found += point.beside if made >= point.disks.keys() else ()
    return list(dict.fromkeys(found))
