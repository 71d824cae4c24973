"""`Template`: a machine that booted once, and any number of clones of it in a tenth of a second."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit._running import raise_death, surfacing_death
from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.arguments import count_faults
from qmpkit.templates.cloning import Wishes, empty_clone
from qmpkit.templates.files import Told, flaws_in_full
from qmpkit.templates.manifest import Manifest
from qmpkit.templates.saved import Saved, removed
from qmpkit.templates.specs import name_faults
from qmpkit.vm import VM

__all__ = ["Template"]


@attrs.frozen
class Template:
    """A saved machine to be cloned; `open_template` and `to_template` give it.

    Clones have its RAM mapped private and its disks below overlays of their own: what they
    write is theirs, and gone with them.
    """

    saved: Saved

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.saved.path

    @property
    def spec(self) -> MachineSpec:
        """The machine that was saved, its files those of the template."""
        return self.saved.spec

    @property
    def manifest(self) -> Manifest:
        """What is written down of it: when, on what, which files, their checksums."""
        return self.saved.manifest

    def clone(
        self,
        name: str | None = None,
        *,
        twin: bool = False,
        ssh_host_keys: bool = False,
        paused: bool = False,
        place: str | os.PathLike[str] | None = None,
        options: LaunchOptions | None = None,
        start: Starter = start_qemu,
    ) -> AbstractAsyncContextManager[VM]:
        """`async with template.clone() as vm:` a machine that goes on where the template stood.

        It is somebody when the block is entered: its name, SMBIOS UUID and MAC addresses are
        new, its guest has another host name, machine-id and instance-id, the host's clock, and
        entropy that nobody else has; with *ssh_host_keys*, new ones.  A *twin* is like the
        template in all that its guest knows, as is one that is *paused*: resumed, it does not
        become somebody.  *place*: the folder of its overlays, in the template's by default.
        Otherwise like `qmpkit.running`; QEMU's QMP migrate-incoming loads it.

        Much of the time goes into QEMU's making of the board: a microvm takes two thirds of the
        time of a q35, see the README for figures.

        Raises SpecInvalid for what the template does not allow, TemplateInUse when it is being
        removed, TemplateFailed when QEMU cannot load it, GuestCommandFailed when the guest does
        not become somebody.  Cancelled or failed, its process and its overlays are gone.
        """
        faults = () if name is None else name_faults(name)
        wishes = self._wishes(twin, ssh_host_keys, paused, place, options, start, faults)
        return self._clone(wishes, name)

    def clones(
        self,
        count: int,
        *,
        twin: bool = False,
        ssh_host_keys: bool = False,
        paused: bool = False,
        place: str | os.PathLike[str] | None = None,
        options: LaunchOptions | None = None,
        start: Starter = start_qemu,
    ) -> AbstractAsyncContextManager[tuple[VM, ...]]:
        """`async with template.clones(20) as vms:` that many at once, each as by `clone`.

        None of them runs before all are loaded.  When one fails to start, or dies out of the
        blue, all are stopped, and the error is raised; several come in a group.  SpecInvalid
        is raised by the call itself.
        """
        faults = count_faults("count", count, 1)
        wishes = self._wishes(twin, ssh_host_keys, paused, place, options, start, faults)
        return self._clones(wishes, count)

    def _wishes(
        self,
        twin: bool,
        ssh_host_keys: bool,
        paused: bool,
        place: str | os.PathLike[str] | None,
        options: LaunchOptions | None,
        start: Starter,
        faults: Iterable[Fault],
    ) -> Wishes:
        wishes = Wishes(
            twin=twin,
            ssh_host_keys=ssh_host_keys,
            paused=paused,
            place=place,
            options=LaunchOptions() if options is None else options,
            start=start,
        )
        wishes.refuse_impossible(self.saved, faults)
        return wishes

    @asynccontextmanager
    async def _clone(self, wishes: Wishes, name: str | None) -> AsyncIterator[VM]:
        async with (
            shared_spawner(),  # first of all, so that it comes up while we look around
            empty_clone(self.saved, wishes, name) as empty,
        ):
            vm = await empty.wake()
            async with surfacing_death(vm.machine):
                yield vm
        raise_death(vm.machine)

    @asynccontextmanager
    async def _clones(self, wishes: Wishes, count: int) -> AsyncIterator[tuple[VM, ...]]:
        """None runs before all are loaded: a guest takes the time that the others need."""
        found: list[VM] = []
        loaded, awake, ended = trio.Event(), trio.Event(), trio.Event()

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with empty_clone(self.saved, wishes, None) as empty:
                await empty.load()
                task_status.started()
                await loaded.wait()
                vm = await empty.wake()
                async with surfacing_death(vm.machine):
                    found.append(vm)
                    if len(found) == count:
                        awake.set()
                    await ended.wait()
            raise_death(vm.machine)

        try:
            async with shared_spawner(), trio.open_nursery() as nursery:
                async with trio.open_nursery() as starting:
                    for _ in range(count):
                        starting.start_soon(_started, nursery, hold)
                loaded.set()
                await awake.wait()
                yield tuple(found)
                ended.set()
        except BaseExceptionGroup as group:
            raise_collapsed(group)

    async def verify(self, progress: Told | None = None) -> tuple[str, ...]:
        """Read every file, and tell which is not what was saved; empty when all is well."""
        return tuple(await flaws_in_full(self.path, self.manifest.files, progress))

    async def remove(self) -> None:
        """Remove its folder, and its RAM wherever that is; TemplateInUse while clones run."""
        await trio.to_thread.run_sync(removed, self.path, self.manifest.ram)


async def _started(nursery: trio.Nursery, hold: Callable[..., object]) -> None:
    await nursery.start(hold)  # type: ignore[arg-type]
