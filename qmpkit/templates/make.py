"""A template from a spec: booted, prepared and saved, or nothing is left of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from qmpkit._running import running
from qmpkit.errors import HostLacks
from qmpkit.images.drafts import StrPath
from qmpkit.images.tool import Asked
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.sizes import MIB, format_size
from qmpkit.templates.drafts import hidden_folder
from qmpkit.templates.specs import refuse_unfit, templating
from qmpkit.templates.take import refuse_taken, to_template
from qmpkit.templates.template import Template
from qmpkit.vm import VM

__all__ = ["make_template"]

_UNDO_GRACE = 5.0


async def make_template(
    spec: MachineSpec,
    path: StrPath,
    prepare: Callable[[VM], Awaitable[object]],
    *,
    ram: StrPath | None = None,
    services: Sequence[str] = (),
    drop_caches: bool = False,
    twins: bool = False,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> Template:
    """Boot *spec*, let *prepare* bring its guest to where clones are to begin, and save it.

    *prepare* waits for the boot's end, installs, warms up: clones go on where it returns.
    *ram*: where the RAM is to be instead of in the template's folder: a new file in a tmpfs
    or, with `memory.huge_pages`, in a hugetlbfs.  The rest is that of `to_template`.

    Raises HostLacks when there is no room for the RAM, and what `running`, *prepare* and
    `to_template` raise.  Cancelled, failed, or killed: nothing is at *path*, and the machine
    is gone.
    """
    asked = Asked.of("make a template at", path)
    refuse_unfit(templating(spec, asked.path), twins=twins, services=services)
    await refuse_taken(asked)
    async with _new_ram(asked, ram, int(spec.memory.size)) as file:
        ready = templating(spec, asked.path, ram=file)
        async with running(ready, options=options, start=start) as vm:
            await prepare(vm)
            return await to_template(
                vm, asked.path, services=services, drop_caches=drop_caches, twins=twins
            )


@asynccontextmanager
async def _new_ram(asked: Asked, given: StrPath | None, size: int) -> AsyncIterator[Path]:
    """Where the RAM's file is to be, which is not there; it goes unless a template has it."""
    if given is None:
        async with hidden_folder(asked) as folder:
            await trio.to_thread.run_sync(_refuse_full, folder.parent, size)
            yield folder / "ram"
        return
    file = Asked.of("put the RAM of a template at", given)
    await refuse_taken(file)
    try:
        await _touch(file)
        await trio.to_thread.run_sync(_refuse_full, file.path.parent, size)
        yield file.path
    except BaseException:
        with trio.move_on_after(_UNDO_GRACE, shield=True):
            await trio.to_thread.run_sync(_remove, file.path)
        raise


def _remove(file: Path) -> None:
    with suppress(OSError):  # what is told is why it is not to be
        file.unlink()


async def _touch(file: Asked) -> None:
    try:  # QEMU, which fills it, would let everybody read what it makes itself
        await trio.to_thread.run_sync(partial(file.path.touch, mode=0o600))
    except OSError as error:
        raise file.failed_by(error) from error


def _refuse_full(folder: Path, size: int) -> None:
    """Raise HostLacks when a RAM of *size* has no room in *folder*.  Blocking.

    Its file has holes at first, so the guest would write to them until the disk is full: a
    SIGBUS then, and no word of why.
    """
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < size:  # none at all: it has no bound, or does not tell
        what = f"the guest's RAM takes {format_size(size)}, and where its file is to be"
        room = f"{what}, {str(folder)!r}, {format_size(free // MIB * MIB)} are free"
        raise HostLacks(room, "free some space there, or put the RAM elsewhere (`ram`, --ram)")
