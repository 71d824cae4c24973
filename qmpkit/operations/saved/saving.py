"""Saving a machine: RAM, devices and disks of one moment, as one folder."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import attrs
import trio

from qmpkit import __version__
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.saved import layers_of, sampled_sum, visible_flags
from qmpkit.images.conversion import convert
from qmpkit.images.drafts import Placed
from qmpkit.images.hashing import digest_of
from qmpkit.images.tool import Asked
from qmpkit.machine.ledger import Change
from qmpkit.machine.machine import Machine
from qmpkit.machine.state_forms import Form
from qmpkit.operations.block.memory import place_file
from qmpkit.operations.block.variables import copy_variables, store_of
from qmpkit.operations.jobs import JobState, Progress, progress_of
from qmpkit.operations.saved.boot_files import copy_boot_files, needed, with_boot_files
from qmpkit.operations.saved.folder import FolderDraft, drafted_folder
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.stillness import go_on, runs, write_memory
from qmpkit.operations.undertaking import Undertaking, undertaking
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import MEMORY, VARIABLES, FileSum, SavedLayer, SavedMachine

__all__ = ["Saving", "save", "saved"]

_DOING = "save the machine in"
_ALIVE = ("running", "paused", "suspended", "prelaunch", "io-error")
"""The run states of QEMU in which there is a guest to be saved."""


@attrs.frozen(kw_only=True)
class Saving:
    """How a machine is saved; `VM.save` says more."""

    copy_disks: bool = False
    ram: Form = "plain"
    progress: Progress | None = None


async def save(machine: Machine, path: Path, how: Saving, *, go_on_after: bool) -> SavedMachine:
    """See `VM.save`."""
    if machine.ledger.lasting and not go_on_after:
        hint = f"Supervisor.save({machine.name!r}), or a copy of its disks: copy_disks=True"
        fault = Fault("", "it is kept: its supervisor would start it again", hint)
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    if go_on_after and not how.copy_disks and _writable(machine.spec):
        hint = "copy_disks=True, or `vm.snapshots.take(name, ram=True)`"
        fault = Fault("go_on", "the disks would go on too, without the RAM that is saved", hint)
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    async with saved(machine, path, how) as (it, found):
        if go_on_after:
            await go_on(machine, ran=it.change.halted)
        else:
            # It is in its place: to be cut off here would leave two of it.
            with trio.move_on_after(machine.graces.total, shield=True):
                await machine.stop()
    return found


@asynccontextmanager
async def saved(
    machine: Machine, path: Path, how: Saving
) -> AsyncIterator[tuple[Undertaking, SavedMachine]]:
    """The machine is saved at *path* and stands still within; what becomes of it says the block.

    When that fails the folder is gone again and the machine goes on, if it ran.
    """
    async with machine.changing:
        await _refuse(machine, path, how)
        ran = await runs(machine)
        async with drafted_folder(path, _DOING) as draft:
            change = _change(machine, draft, ran=ran)
            async with undertaking(machine, change) as it, _halted(machine, it):
                if ran:
                    await machine.execute("stop")
                found = await _filled(machine, it, draft, how)
                await draft.place(found)
                yield it, found


def _change(machine: Machine, draft: FolderDraft, *, ran: bool) -> Change:
    return Change(
        what=f"save the machine in {draft.target}",
        spec=machine.spec,
        begun=machine.spec,
        memory=str(draft.path / MEMORY),
        halted=ran,
    )


async def _refuse(machine: Machine, path: Path, how: Saving) -> None:
    """Raise SpecInvalid with all that is wrong."""
    status = str((await machine.execute("query-status"))["status"])
    faults = [*_faults(machine.spec, path, how)]
    if machine.ledger.fleeting is not None and not how.copy_disks:
        told = _fleeting_faults(machine, path, machine.ledger.fleeting)
        faults += await trio.to_thread.run_sync(list, told)
    if status not in _ALIVE:
        faults.insert(0, Fault("", f"its guest is down ({status}): there is nothing to go on with"))
    if how.ram == "mapped":
        known = await machine.execute("query-migrate-capabilities")
        if all(it["capability"] != "mapped-ram" for it in known):
            message = "this QEMU cannot map it, 9.0 and later can"
            faults.append(Fault("ram", message, '"packed" is the smallest, "plain" the fastest'))
    if faults:
        raise SpecInvalid(faults, f"machine {machine.name!r}")


def _faults(spec: MachineSpec, path: Path, how: Saving) -> Iterator[Fault]:
    if how.ram not in get_args(Form):
        known = ", ".join(map(repr, get_args(Form)))
        yield Fault("ram", f"cannot be {how.ram!r}", f"one of {known}")
    if os.path.lexists(path):
        yield Fault("path", f"{str(path)!r} is there already", "choose another, or remove it")
    elif not path.absolute().parent.is_dir():
        yield Fault("path", f"there is no directory {str(path.absolute().parent)!r}", "create it")
    for disk in _writable(spec) if how.copy_disks else ():
        if disk.luks is not None:
            message = f"the disk {disk.id!r} is encrypted, and its copy would be in clear"
            yield Fault("copy_disks", message, "leave copy_disks out: it stays where it is")


def _fleeting_faults(machine: Machine, path: Path, fleeting: Path) -> Iterator[Fault]:
    """Of each disk that does not outlive the machine: the folder would miss it.  Blocking."""
    place = fleeting.resolve()
    known = _layers(Asked.of(_DOING, path), _writable(machine.spec))
    for disk, layers in known.items():
        if any(Path(layer.file).resolve().is_relative_to(place) for layer in layers):
            message = f"the disk {disk!r} ends with the machine, so the folder would miss it"
            yield Fault("copy_disks", message, "copy_disks=True")


def _writable(spec: MachineSpec) -> list[Disk]:
    return [disk for disk in spec.disks if not disk.is_readonly and not disk.is_empty]


def _to_copy(spec: MachineSpec, borrowed: Path | None) -> list[Disk]:
    """What its guest can write to, and what is a template's: that may be gone by then."""
    there = [disk for disk in spec.disks if not disk.is_empty]
    return [disk for disk in there if not disk.is_readonly or Path(disk.file).parent == borrowed]


@asynccontextmanager
async def _halted(machine: Machine, it: Undertaking) -> AsyncIterator[None]:
    """A guest that ran runs again when the block fails."""
    try:
        yield
    except BaseException:
        if machine.report is None:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await go_on(machine, ran=it.change.halted)
        raise


async def _filled(
    machine: Machine, it: Undertaking, draft: FolderDraft, how: Saving
) -> SavedMachine:
    spec, memory = machine.spec, draft.path / MEMORY
    files: list[Placed] = [await place_file(str(memory))]
    await it.made(files)
    await write_memory(machine, memory, it.change.what, how.progress, form=how.ram)
    if store_of(spec) is not None:
        await place_file(str(draft.path / VARIABLES))
        await copy_variables(spec, str(draft.path / VARIABLES))
    copied = _to_copy(spec, machine.ledger.borrowed) if how.copy_disks else []
    copies = {disk.id: f"{disk.id}.qcow2" for disk in copied}
    for disk in copied:
        target = draft.path / copies[disk.id]
        await convert(disk.file, target, source_format=disk.format, format="qcow2")
    boot = await copy_boot_files(spec, draft.path) if how.copy_disks else {}
    needs = {str(path): path for path in needed(spec) if str(path) not in boot}
    stay = [disk for disk in spec.disks if disk.id not in copies and not disk.is_empty]
    if machine.ledger.borrowed is not None:  # the template's RAM: all of it is in `memory` now
        spec = attrs.evolve(spec, memory=attrs.evolve(spec.memory, mem_path=None))
    version = await machine.execute("query-version")
    return SavedMachine(
        spec=with_boot_files(_on_copies(spec, copies), boot),
        time=time.time(),
        qmpkit=__version__,
        qemu=_version(version),
        accel=machine.facts.accel,
        ram=how.ram,
        cpu_flags=await trio.to_thread.run_sync(visible_flags, spec, machine.facts.accel),
        files=await _sums(draft.asked, _contents(draft.path), how.progress, safe=True),
        needs=await _sums(draft.asked, needs),
        disks=await trio.to_thread.run_sync(_layers, draft.asked, stay),
        copies=copies,
    )


def _version(told: dict[str, Any]) -> str:
    number = ".".join(str(told["qemu"][part]) for part in ("major", "minor", "micro"))
    return f"{number} {told['package']}".strip()


def _on_copies(spec: MachineSpec, copies: dict[str, str]) -> MachineSpec:
    """*spec* with its disks in the folder; they are whole, so there are no snapshots below."""
    disks = [
        attrs.evolve(
            disk, file=copies[disk.id], format="qcow2", driver="file", make=None, origin=None
        )
        if disk.id in copies
        else attrs.evolve(disk, make=None)
        for disk in spec.disks
    ]
    points = {} if not copies else {"snapshots": (), "snapshot": None}
    return attrs.evolve(spec, disks=disks, **points)  # type: ignore[arg-type]


def _contents(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _layers(asked: Asked, disks: list[Disk]) -> dict[str, tuple[SavedLayer, ...]]:
    try:
        return {disk.id: layers_of(disk) for disk in disks}
    except OSError as error:
        raise asked.failed_by(error) from error


async def _sums(
    asked: Asked, paths: dict[str, Path], progress: Progress | None = None, *, safe: bool = False
) -> dict[str, FileSum]:
    """What tells of each file that it is as it was; with *safe* it is on disk then."""
    read = await trio.to_thread.run_sync(_reading, list(paths.values()), progress)
    found = {}
    for name, path in paths.items():
        digest = await digest_of(path, asked, read, safe=safe)
        try:
            sample = await trio.to_thread.run_sync(sampled_sum, path)
        except OSError as error:
            raise asked.failed_by(error) from error
        found[name] = FileSum(length=digest.length, checksum=digest.checksum, sampled=sample)
    return found


def _reading(paths: list[Path], progress: Progress | None) -> Callable[[int], object]:
    """Tells of the reading as of a job of the type "checksum".  Blocking."""
    total = sum(path.stat().st_size for path in paths)
    done, since = 0, time.monotonic()

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            state = JobState("checksum", "checksum", "running", done, total)
            progress(progress_of(state, since, 0, time.monotonic()))

    return read
