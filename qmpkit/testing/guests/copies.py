"""A freshly booted guest in a tenth of a second: copies of one that was booted once."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.errors import ImageFailed
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.profile import load_profile
from qmpkit.templates.errors import TemplateBroken
from qmpkit.templates.make import make_template
from qmpkit.templates.manifest import MANIFEST
from qmpkit.templates.opening import open_template
from qmpkit.templates.template import Template
from qmpkit.testing.guests import store
from qmpkit.testing.guests.tiny import PROMPT, build_tiny
from qmpkit.vm import VM

__all__ = ["booted", "template_of"]

_KEPT = 8  # saved guests of one profile, 100 MB each: one for each QEMU and variation

# Two tasks that want the same template boot it once; two processes may both boot it.
_locks: trio.lowlevel.RunVar[dict[Path, trio.Lock]] = trio.lowlevel.RunVar("template locks")


@asynccontextmanager
async def booted(
    profile: str | MachineSpec = "tiny", *, qemu: str | None = None, name: str | None = None
) -> AsyncIterator[VM]:
    """A *tiny* guest of your own, at a fresh prompt, its agent answering.

    The first call for a profile and a QEMU boots the guest and saves it (3 s); each
    later one, also in other programs, restores a copy of that (0.1 s).  *profile* is
    `tiny` or `tiny-microvm`, or a spec made of one of them, without disks.  Copies are
    identical twins (host name, /dev/urandom, clock): see `qmpkit.Template.clone`.
    Else like `qmpkit.running`.
    """
    spec = load_profile(profile) if isinstance(profile, str) else profile
    if qemu is not None:
        spec = attrs.evolve(spec, qemu=qemu)
    template = await template_of(spec)
    async with template.clone(name or spec.name, twin=True) as vm:
        await vm.console.send_line("")
        await vm.console.expect(PROMPT)
        yield vm


async def template_of(spec: MachineSpec) -> Template:
    """The saved state of *spec*, a *tiny* guest, booted and saved now when there is none."""
    await trio.to_thread.run_sync(build_tiny, spec.arch)
    resolution = await resolve(spec)
    link = store.guests_dir() / f"template-{spec.name}"
    directory = link.with_name(f"{link.name}-{store.digest(_facts(resolution))}")
    async with _lock_of(directory):
        with suppress(TemplateBroken):
            if await trio.Path(directory / MANIFEST).exists():
                return await open_template(directory)
        await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
        await _boot_and_save(resolution.spec, directory)
        forget = partial(store.forget_old, link, directory, keep=_KEPT)
        await trio.to_thread.run_sync(forget)
        return await open_template(directory)


def _facts(resolution: Resolution) -> dict[str, object]:
    """All that a saved state depends on; the guest's files carry their digest in their path."""
    spec = attrs.evolve(resolution.spec, name="")
    binary = Path(resolution.facts.binary)
    status = binary.stat()
    kernel = spec.kernel
    return {
        "spec": spec_to_dict(spec),
        "files": [] if kernel is None else [os.path.realpath(kernel.image or "")],
        "qemu": [str(binary), status.st_size, status.st_mtime_ns],
        "cpu": [resolution.facts.accel, *resolution.facts.cpu_flags],
    }


def _lock_of(directory: Path) -> trio.Lock:
    try:
        locks = _locks.get()
    except LookupError:
        locks = {}
        _locks.set(locks)
    return locks.setdefault(directory, trio.Lock())


async def _boot_and_save(spec: MachineSpec, directory: Path) -> None:
    try:
        await make_template(spec, directory, _settled, twins=True)
    except ImageFailed:
        # Another process may have been faster; its template is as good as ours.
        if not await trio.Path(directory / MANIFEST).exists():
            raise


async def _settled(vm: VM) -> None:
    await vm.console.expect(PROMPT)
    # Not while half of the drivers are loaded, nor with a prompt half written.
    await vm.console.send_line("until [ -e /run/settled ]; do usleep 20000; done; clear")
    await vm.console.expect(PROMPT)
    if vm.spec.agent:
        await vm.agent.wait_ready()
