"""From the folder of a saved machine to the spec by which it goes on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.layered import mark_layered
from qmpkit.host.saved import SPENT, saved_at, saved_faults
from qmpkit.images.drafts import Placed
from qmpkit.images.encrypting import encrypting
from qmpkit.images.hashing import digest_of
from qmpkit.images.new import place_overlay
from qmpkit.images.tool import Asked
from qmpkit.images.varstore import place_store
from qmpkit.operations.block.layers import with_disks
from qmpkit.operations.saved.boot_files import with_boot_files
from qmpkit.operations.saved.folder import held_folder, mark_spent
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.block import Disk
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import MEMORY, VARIABLES, SavedMachine

__all__ = ["Restorable", "faults_of", "restorable", "saved_machine", "verify_saved"]


async def saved_machine(path: str | os.PathLike[str]) -> SavedMachine:
    """What the folder of a saved machine says of it.

    SpecInvalid when it is none, or one of a newer qmpkit.
    """
    return await trio.to_thread.run_sync(saved_at, _absolute(path))


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).absolute()


async def verify_saved(path: str | os.PathLike[str]) -> tuple[Fault, ...]:
    """All that keeps a saved machine from being restored; every byte in its folder is read.

    Empty when all is well.  Raises SpecInvalid as `saved_machine`, ImageFailed when a file
    cannot be read.
    """
    folder = _absolute(path)
    saved = await saved_machine(folder)
    faults = [*await faults_of(folder)]
    known = {fault.path for fault in faults}
    for name, file in saved.files.items():
        if f"files.{name}" not in known:
            asked = Asked("verify", folder / name)
            digest = await digest_of(asked.path, asked, safe=False)
            if digest.checksum != file.checksum:
                what = f"{str(asked.path)!r} has another checksum: its content has changed"
                faults.append(Fault(f"files.{name}", what))
    return tuple(faults)


async def faults_of(path: str | os.PathLike[str]) -> tuple[Fault, ...]:
    """The same, found out in milliseconds: the files are sampled."""
    folder = _absolute(path)
    saved = await saved_machine(folder)
    own = {*saved.copies, *saved.disks}
    return await trio.to_thread.run_sync(lambda: tuple(saved_faults(folder, saved, own)))


@attrs.define
class Restorable:
    """A saved machine that is about to be started by `spec`."""

    spec: MachineSpec
    saved: SavedMachine
    _folder: Path
    _layered: bool
    _made: list[Placed] = attrs.field(factory=list)
    _new_folder: Path | None = None

    async def used(self) -> None:
        """Its state is loaded, and its guest goes on from here: not to be done a second time.

        ImageFailed when that cannot be noted.
        """
        if not self._layered:
            await mark_spent(self._folder, self.saved)
        self._made.clear()
        self._new_folder = None


@asynccontextmanager
async def restorable(path: Path, *, layers: Path | None, verify: bool) -> AsyncIterator[Restorable]:
    """The machine that was saved at *path*, checked and held, and with *layers* its new disks.

    What was made is taken away again unless it has been `used`.
    """
    folder = _absolute(path)
    async with held_folder_of(folder, alone=layers is None):
        saved = await saved_machine(folder)
        await _refuse(folder, saved, layers, verify=verify)
        it = Restorable(_spec(folder, saved), saved, folder, layers is not None)
        try:
            if layers is None:
                await _own_store(it, folder)
            else:
                await _put_on_layers(it, _absolute(layers))
            yield it
        except BaseException:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await trio.to_thread.run_sync(_undo, it, abandon_on_cancel=True)
            raise


@asynccontextmanager
async def held_folder_of(folder: Path, *, alone: bool) -> AsyncIterator[None]:
    """`held_folder`, of one that holds a saved machine."""
    await saved_machine(folder)  # which says what is wrong with the place
    async with held_folder(folder, alone=alone):
        yield


async def _refuse(folder: Path, saved: SavedMachine, layers: Path | None, *, verify: bool) -> None:
    faults = [*await (verify_saved(folder) if verify else faults_of(folder))]
    if layers is not None:
        faults = [fault for fault in faults if fault.path != SPENT]
        faults += await trio.to_thread.run_sync(lambda: [*_layer_faults(saved, layers)])
    if faults:
        raise SpecInvalid(faults, f"saved machine {saved.name!r} in {folder}")


def _layer_faults(saved: SavedMachine, layers: Path) -> Iterator[Fault]:
    above = layers.absolute().parent
    if os.path.lexists(layers) and not layers.is_dir():
        yield Fault("layers", f"{str(layers)!r} is no directory", f"name another {_LAYERS}")
    elif not above.is_dir():
        yield Fault("layers", f"there is no directory {str(above)!r}", "create it")
    names = [f"{disk.id}.qcow2" for disk in _layered(saved.spec)]
    names += [VARIABLES] if VARIABLES in saved.files else []
    for name in names:
        if os.path.lexists(layers / name):
            message = f"{str(layers / name)!r} is there already"
            yield Fault("layers", message, f"name an empty directory {_LAYERS}")


_LAYERS = "(`layers`, --keep)"


def _layered(spec: MachineSpec) -> list[Disk]:
    return [disk for disk in spec.disks if not disk.is_readonly and not disk.is_empty]


def _spec(folder: Path, saved: SavedMachine) -> MachineSpec:
    """By which it goes on, on the images that it was left with."""
    spec = saved.spec
    copied = [
        attrs.evolve(disk, file=str(folder / saved.copies[disk.id]))
        for disk in spec.disks
        if disk.id in saved.copies
    ]
    spec = attrs.evolve(with_disks(spec, copied), resume_from=str(folder / MEMORY))
    own = saved.files.keys() - {MEMORY, VARIABLES, *saved.copies.values()}
    spec = with_boot_files(spec, {name: str(folder / name) for name in own})
    if saved.copies and VARIABLES in saved.files:
        spec = _with_store(spec, folder / VARIABLES)
    return spec


def _with_store(spec: MachineSpec, store: Path) -> MachineSpec:
    assert isinstance(spec.firmware, Uefi)
    return attrs.evolve(spec, firmware=attrs.evolve(spec.firmware, vars=str(store), origin=None))


async def _own_store(it: Restorable, folder: Path) -> None:
    """UEFI variables that are lost come from the folder; QEMU fills them by what the RAM has."""
    firmware = it.spec.firmware
    store = firmware.vars if isinstance(firmware, Uefi) else None
    if store is not None and not await trio.Path(store).exists():
        it._made.append(await place_store(store, folder / VARIABLES))


async def _put_on_layers(it: Restorable, layers: Path) -> None:
    it._new_folder = await trio.to_thread.run_sync(_made_folder, layers)
    changed = []
    for disk in _layered(it.spec):
        file, how = layers / f"{disk.id}.qcow2", await encrypting(disk.luks)
        it._made.append(await place_overlay(file, disk.file, disk.format, "qcow2", **how))
        await trio.to_thread.run_sync(mark_layered, Path(disk.file), file)
        changed.append(
            attrs.evolve(
                disk,
                file=str(file),
                format="qcow2",
                driver="file",
                node=None,
                make=None,
                origin=None,
            )
        )
    it.spec = with_disks(it.spec, changed)
    if VARIABLES in it.saved.files:
        store = layers / VARIABLES
        it._made.append(await place_store(store, it._folder / VARIABLES))
        it.spec = _with_store(it.spec, store)


def _made_folder(layers: Path) -> Path | None:
    """The folder for the layers, if it was not there.  Blocking; ImageFailed."""
    try:
        layers.mkdir(mode=0o700)
    except FileExistsError:
        return None
    except OSError as error:
        raise Asked.of("create", layers).failed_by(error) from error
    return layers


def _undo(it: Restorable) -> None:
    for placed in it._made:
        placed.path.unlink(missing_ok=True)
    if it._new_folder is not None:
        with suppress(OSError):  # somebody else may have put something there
            it._new_folder.rmdir()
