"""From a template to a machine that runs: started empty, loaded, let go, made somebody."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from qmpkit._running import opened_as
from qmpkit.errors import Fault, MachineDied, MachineGone, SpecInvalid
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.machine.ledger import Unwritten
from qmpkit.machine.saved_state import load_state, take_images_back
from qmpkit.machine.state_forms import OpenState
from qmpkit.operations import power
from qmpkit.templates.arguments import flag_faults, folder_faults
from qmpkit.templates.errors import TemplateFailed
from qmpkit.templates.guest import become
from qmpkit.templates.saved import Saved, provided
from qmpkit.templates.specs import Somebody, clone_spec, somebody
from qmpkit.vm import VM

__all__ = ["Empty", "Wishes", "empty_clone"]


@attrs.frozen(kw_only=True)
class Wishes:
    """How clones are to be.

    `twin`: as the template is in all that the guest knows of itself.  `ssh_host_keys`: new
    ones for its ssh server.  `place`: the folder of their overlays.  `paused`: it is loaded
    and stands still, so it is a twin yet.
    """

    twin: bool = False
    ssh_host_keys: bool = False
    paused: bool = False
    place: str | os.PathLike[str] | None = None
    options: LaunchOptions = attrs.field(factory=LaunchOptions)
    start: Starter = start_qemu

    def refuse_impossible(
        self, saved: Saved, more: Iterable[Fault] = (), *, what: str = "a clone"
    ) -> None:
        """SpecInvalid when no clone of *saved* can be so, with *more* that is wrong with *what*."""
        if faults := [*more, *self._faults(saved)]:
            raise SpecInvalid(faults, f"{what} of {str(saved.path)!r}")

    def _faults(self, saved: Saved) -> Iterator[Fault]:
        flags = {"twin": self.twin, "ssh_host_keys": self.ssh_host_keys, "paused": self.paused}
        yield from flag_faults(**flags)
        yield from folder_faults("place", self.place)
        if not isinstance(self.options, LaunchOptions):
            yield Fault("options", f"is a LaunchOptions, not {self.options!r}")
        if not self.twin and not self.paused and saved.manifest.hooks is None:
            message = "nothing was laid ready in its guest, so its clones can only be twins"
            hint = "`twin` (--twin), or make it anew without `twins` (--twins)"
            yield Fault("twin", message, hint)
        if self.ssh_host_keys and (self.twin or self.paused):
            hint = "leave out either (`ssh_host_keys`, --ssh-host-keys; `twin`, --twin)"
            yield Fault("ssh_host_keys", "a twin has those of the template", hint)


@attrs.define
class Empty:
    """A clone whose process runs and waits for its state."""

    vm: VM
    _saved: Saved
    _state: OpenState
    _who: Somebody
    _wishes: Wishes
    _loaded: bool = False

    async def load(self) -> None:
        """Fill it; it stands still then.  Once is enough.

        TemplateFailed when QEMU does not like the state, with what it said.
        """
        if self._loaded:
            return
        machine, asked = self.vm.machine, "load the template's state"
        try:
            why = await load_state(machine, self._state, ignore_shared=True)
        except (MachineDied, MachineGone) as ended:
            said = machine.child.stderr_tail.strip()
            raise TemplateFailed(machine.name, asked, said or str(ended)) from ended
        finally:
            self._state.close()
        if why:
            raise TemplateFailed(machine.name, asked, why)
        machine.loaded()
        self._loaded = True

    async def wake(self) -> VM:
        """Load it, if that has not been, let it run and make it somebody, as was wished."""
        await self.load()
        if self._wishes.paused:
            await take_images_back(self.vm.machine)
        else:
            await power.resume(self.vm.machine)
            hooks = self._saved.manifest.hooks
            if not self._wishes.twin and hooks is not None:
                keys = self._wishes.ssh_host_keys
                await become(self.vm.agent, hooks, self._who, ssh_host_keys=keys)
        return self.vm


@asynccontextmanager
async def empty_clone(saved: Saved, wishes: Wishes, name: str | None) -> AsyncIterator[Empty]:
    """Start the process of a clone, which is gone after the block, as are its overlays.

    Its death cancels nobody.
    """
    who = somebody(saved.spec, name)
    place = None if wishes.place is None else Path(wishes.place)
    async with provided(saved, place) as own:
        options = attrs.evolve(wishes.options, incoming=True, state=own.state)
        spec = clone_spec(saved.private.spec, who, own.overlays)
        resolution = attrs.evolve(saved.private, spec=spec)
        async with opened_as(resolution, options=options, start=wishes.start) as vm:
            vm.machine.ledger = Unwritten(own.folder, saved.path)
            yield Empty(vm, saved, own.state, who, wishes)
