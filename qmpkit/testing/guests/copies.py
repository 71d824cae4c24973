"""A freshly booted guest in a tenth of a second: copies of one that was booted once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit._running import running
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.launch import LaunchOptions
from qmpkit.operations.template import (
    Template,
    clone_spec,
    is_spoilt,
    load_template,
    read_template,
    save_template,
    template_spec,
)
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.profile import load_profile
from qmpkit.testing.guests import store
from qmpkit.testing.guests.tiny import PROMPT, build_tiny
from qmpkit.vm import VM

__all__ = ["booted", "template_of"]

_KEPT = 8  # saved guests of one profile, 100 MB each: one for each QEMU and variation

# Two tasks that want the same template boot it once; two processes may both boot it.
_locks: trio.lowlevel.RunVar[dict[Path, trio.Lock]] = trio.lowlevel.RunVar("template locks")


@asynccontextmanager
async def booted(
    profile: str | MachineSpec = "tiny",
    *,
    qemu: str | None = None,
    name: str | None = None,
    own_ram: bool = False,
) -> AsyncIterator[VM]:
    """A *tiny* guest of your own, at a fresh prompt, its agent answering.

    The first call for a profile and a QEMU boots the guest and saves it (3 s); each
    later one, also in other programs, restores a copy of that (0.1 s).  *profile* is
    `tiny` or `tiny-microvm`, or a spec made of one of them, without disks.  Copies are
    identical twins (host name, /dev/urandom, clock): see `qmpkit.operations.template`.
    With *own_ram* its RAM is copied first (0.2 s), and it can give some of it back by its
    balloon.  Else like `qmpkit.running`.
    """
    spec = load_profile(profile) if isinstance(profile, str) else profile
    if qemu is not None:
        spec = attrs.evolve(spec, qemu=qemu)
    template = await template_of(spec)
    clone = clone_spec(template, name=name or spec.name)
    async with AsyncExitStack() as stack:
        if own_ram:
            clone = await stack.enter_async_context(_with_own_ram(clone))
        options = LaunchOptions(incoming=True)
        vm = await stack.enter_async_context(running(clone, paused=True, options=options))
        await load_template(vm.machine, template)
        await vm.resume()
        await vm.console.send_line("")
        await vm.console.expect(PROMPT)
        yield vm


@asynccontextmanager
async def _with_own_ram(clone: MachineSpec) -> AsyncIterator[MachineSpec]:
    """*clone* with a copy of the template's RAM, which it may write into."""
    source = Path(clone.memory.mem_path or "")
    folder = await trio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="qk-ram-"))
    ram = Path(folder) / source.name
    try:
        await trio.to_thread.run_sync(shutil.copyfile, source, ram)
        yield attrs.evolve(clone, memory=attrs.evolve(clone.memory, mem_path=ram, share=True))
    finally:
        await _removed(Path(folder))


async def template_of(spec: MachineSpec) -> Template:
    """The saved state of *spec*, a *tiny* guest, booted and saved now when there is none."""
    await trio.to_thread.run_sync(build_tiny, spec.arch)
    resolution = await resolve(spec)
    link = store.guests_dir() / f"saved-{spec.name}"
    directory = link.with_name(f"{link.name}-{store.digest(_facts(resolution))}")
    async with _lock_of(directory):
        template = await trio.to_thread.run_sync(_usable, directory)
        if template is None:
            await _boot_and_save(resolution.spec, directory)
            forget = partial(store.forget_old, link, directory, keep=_KEPT)
            await trio.to_thread.run_sync(forget)
            template = await trio.to_thread.run_sync(read_template, directory)
    assert template is not None
    return template


def _usable(directory: Path) -> Template | None:
    """What is saved there; one that a copy has written into is removed."""
    template = read_template(directory)
    if template is None or not is_spoilt(template):
        return template
    shutil.rmtree(directory, ignore_errors=True)
    return None


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
    scratch = Path(
        await trio.to_thread.run_sync(
            lambda: tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
        )
    )
    try:
        async with running(template_spec(spec, scratch)) as vm:
            await vm.console.expect(PROMPT)
            # Not while half of the drivers are loaded, nor with a prompt half written.
            await vm.console.send_line("until [ -e /run/settled ]; do usleep 20000; done; clear")
            await vm.console.expect(PROMPT)
            if spec.agent:
                await vm.agent.wait_ready()
            await save_template(vm.machine, scratch)
            await vm.quit()
        # Another process may have been faster; its template is as good as ours.
        with suppress(OSError):
            await trio.to_thread.run_sync(scratch.rename, directory)
    finally:
        await _removed(scratch)


async def _removed(folder: Path) -> None:
    with trio.CancelScope(deadline=trio.current_time() + 10, shield=True):
        await trio.to_thread.run_sync(
            lambda: shutil.rmtree(folder, ignore_errors=True), abandon_on_cancel=True
        )
