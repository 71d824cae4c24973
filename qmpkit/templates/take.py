"""A machine that has booted becomes a template: whole, or the machine goes on as before.

Its RAM is in a file already, so saving is 20 ms for QEMU; copying its disks and checksums
take as long as they are large.  Everything is gathered in a hidden folder beside the place,
which gets its name last.  Then the machine must end: it still maps the RAM.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from qmpkit.errors import QmpkitError
from qmpkit.images.conversion import convert
from qmpkit.images.drafts import StrPath
from qmpkit.images.hashing import copied
from qmpkit.images.tool import Asked
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import save_state, take_images_back
from qmpkit.machine.state import State
from qmpkit.operations import power
from qmpkit.process.durable import sync, write_durably
from qmpkit.spec.block import Disk
from qmpkit.spec.firmware import Firmware, Uefi
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.templates.drafts import hidden_folder
from qmpkit.templates.errors import TemplateFailed
from qmpkit.templates.files import frozen
from qmpkit.templates.guest import lay_ready, quiet, serve_again, stop_services
from qmpkit.templates.host import build_of
from qmpkit.templates.manifest import MANIFEST, GuestHooks, Manifest, manifest_to_json
from qmpkit.templates.opening import open_template
from qmpkit.templates.saved import CLONES
from qmpkit.templates.specs import refuse_unfit
from qmpkit.templates.template import Template
from qmpkit.vm import VM

__all__ = ["refuse_taken", "to_template"]

_UNDO_GRACE = 30.0
_DOING = "save a template at"
_AS_A_TEMPLATE = "be saved as a template"


async def to_template(
    vm: VM,
    path: StrPath,
    *,
    services: Sequence[str] = (),
    drop_caches: bool = False,
    twins: bool = False,
) -> Template:
    """Save the running machine *vm* as a template at *path*, which is new, and end it.

    It must have been booted from `templating(spec, path)`.  The guest lays ready, by its
    agent, what lets clones become somebody, stops *services* (each clone starts them again),
    writes its disks (`sync`) and forgets its caches, with *drop_caches*: clones that share
    them start faster.  With *twins* nothing is asked of the guest, and clones are
    identical.  Disks are copied, each with all that is below it into one image, kernel and
    firmware too: the images of the user stay as they are.  The RAM's file is taken over.

    Raises SpecInvalid with all that a template cannot have, before anything is done;
    TemplateFailed when QEMU cannot save it, ImageFailed when a file cannot be made,
    GuestRefused (GuestCommandFailed) when the guest does not obey.  Failed or cancelled,
    nothing is at *path*, and the machine runs on, its services too.  QMP: stop,
    migrate-set-capabilities, getfd, migrate, cont, quit.
    """
    asked = Asked.of(_DOING, path)
    machine = vm.machine
    refuse_unfit(vm.spec, twins=twins, services=services)
    _refuse_state(machine)
    await refuse_taken(asked)
    async with (
        machine.changing,
        _asked_of_guest(vm, services, twins, drop_caches) as hooks,
        hidden_folder(asked) as draft,
        _standing(machine) as standing,
    ):
        saved = await _gathered(machine, draft, asked, hooks)
        # The last thing that can fail: from then on the machine may not run again.
        await trio.to_thread.run_sync(_publish, draft, asked, saved)
        standing.for_good = True
        with trio.move_on_after(machine.graces.total, shield=True):
            await machine.stop()
            await trio.to_thread.run_sync(_disown_ram, machine.spec, saved)
    return await open_template(asked.path)


async def refuse_taken(asked: Asked) -> None:
    """Raise ImageFailed when something has the place already."""
    if await trio.to_thread.run_sync(os.path.lexists, asked.path):
        why, cure = "there is something already", "choose another place, or remove it"
        raise asked.failed(why, cure) from FileExistsError(str(asked.path))


def _refuse_state(machine: Machine) -> None:
    machine.must_live(_AS_A_TEMPLATE)
    if machine.state is not State.RUNNING:
        why = f"it is {machine.state.value}"
        raise TemplateFailed(machine.name, _AS_A_TEMPLATE, why, "let its guest run (resume)")


@asynccontextmanager
async def _asked_of_guest(
    vm: VM, services: Sequence[str], twins: bool, drop_caches: bool
) -> AsyncIterator[GuestHooks | None]:
    """The guest is ready to be saved within, and as it was when that fails."""
    if twins:
        yield None
        return
    try:
        await stop_services(vm.agent, services)
        hooks = await lay_ready(vm.agent, vm.spec.arch, services)
        await quiet(vm.agent, drop_caches=drop_caches)
        yield hooks
    except BaseException:
        if services and vm.report is None:
            await serve_again(vm.agent, services)
        raise


@attrs.define
class _Standing:
    for_good: bool = False


@asynccontextmanager
async def _standing(machine: Machine) -> AsyncIterator[_Standing]:
    """The guest stands still; it goes on when the block fails, unless that is for good."""
    standing = _Standing()
    try:
        await power.pause(machine)
        yield standing
    except BaseException:
        if not standing.for_good and machine.report is None:
            with trio.move_on_after(_UNDO_GRACE, shield=True), suppress(QmpkitError):
                await take_images_back(machine)
                await power.resume(machine)
        raise


async def _gathered(
    machine: Machine, draft: Path, asked: Asked, hooks: GuestHooks | None
) -> Manifest:
    """All files of the template in *draft*, and what is known of them."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    if why := machine.maimed or await save_state(
        machine, draft / "state", flags=flags, ignore_shared=True
    ):
        raise TemplateFailed(machine.name, "save its state", why)
    created = time.time()
    ram = await trio.to_thread.run_sync(_link_ram, machine.spec, draft, asked)
    spec = await _copied_files(machine, draft, asked)
    names = set(await trio.to_thread.run_sync(os.listdir, draft)) - {ram}
    files = [await frozen(draft, name, asked) for name in sorted(names)]
    files.append(await frozen(draft, ram, asked, ram=True))  # last: it is the machine's still
    return Manifest(
        id=secrets.token_hex(4),
        created=created,
        spec=attrs.evolve(spec, memory=attrs.evolve(spec.memory, mem_path=ram)),
        build=await build_of(machine),
        ram=ram,
        files=tuple(files),
        hooks=hooks,
    )


def _link_ram(spec: MachineSpec, draft: Path, asked: Asked) -> str:
    """The RAM's name in the template; its path, where it is on another file system."""
    file = Path(spec.memory.mem_path or "")
    try:
        if file.stat().st_dev != draft.stat().st_dev:
            return str(file)
        (draft / "ram").hardlink_to(file)
    except OSError as error:
        raise asked.failed_by(error) from error
    return "ram"


async def _copied_files(machine: Machine, draft: Path, asked: Asked) -> MachineSpec:
    """The spec of a machine that is made of copies in *draft*, named as they are there."""
    spec = machine.spec
    disks = [disk if disk.is_empty else await _copied_disk(disk, draft) for disk in spec.disks]
    kernel = spec.kernel
    if kernel is not None:
        image = await _copied_as(kernel.image, draft / "kernel", asked)
        initrd = await _copied_as(kernel.initrd, draft / "initrd", asked)
        kernel = Kernel(image=image, initrd=initrd, append=kernel.append)
    return attrs.evolve(
        spec,
        disks=disks,
        kernel=kernel,
        firmware=await _copied_firmware(spec.firmware, draft, asked),
        snapshots=(),
        snapshot=None,
        qemu=machine.facts.binary,
    )


async def _copied_disk(disk: Disk, draft: Path) -> Disk:
    """With all that is below it: what a clone stands on depends on nobody else's image."""
    format = disk.format if disk.is_readonly else "qcow2"
    name = f"{disk.id}.{format}"
    await convert(disk.file, draft / name, source_format=disk.format, format=format)
    return attrs.evolve(
        disk, file=name, format=format, make=None, driver="file", node=None, origin=None
    )


async def _copied_firmware(firmware: Firmware, draft: Path, asked: Asked) -> Firmware:
    if isinstance(firmware, str):
        return await _copied_as(firmware, draft / "firmware", asked)
    if isinstance(firmware, Uefi) and firmware.vars is not None:
        name = await _copied_as(firmware.vars, draft / "variables", asked)
        return attrs.evolve(firmware, template=name, vars=None, origin=None)
    return firmware


async def _copied_as(source: str | None, target: Path, asked: Asked) -> str | None:
    if source is None:
        return None
    await copied(Path(source), target, asked)
    return target.name


def _publish(draft: Path, asked: Asked, saved: Manifest) -> None:
    """Give the template its name, safe on disk.  Blocking."""
    try:
        (draft / CLONES).mkdir(mode=0o700)
        write_durably(draft / MANIFEST, manifest_to_json(saved))
        draft.rename(asked.path)
        sync(asked.path.parent)
    except OSError as error:
        raise asked.failed_by(error) from error


def _disown_ram(spec: MachineSpec, saved: Manifest) -> None:
    """The RAM has its name in the template: the one that the machine knew goes.  Blocking."""
    if saved.ram == "ram":
        with suppress(OSError):
            Path(spec.memory.mem_path or "").unlink()
