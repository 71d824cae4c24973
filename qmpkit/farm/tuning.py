"""What a machine of a farm is given of its host, changed while it runs when its file changes."""

from __future__ import annotations

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import with_rates
from qmpkit.spec.resources import Resources
from qmpkit.supervisor.kept import Kept

__all__ = ["tune", "tuned"]


def tuned(running: MachineSpec, old: MachineSpec, new: MachineSpec) -> MachineSpec:
    """*running* with what differs from *old* to *new* of its place on the host.  Pure.

    What does not differ stays: a start has made something else of "auto".
    """
    if old.cpu.pin != new.cpu.pin:
        running = attrs.evolve(running, cpu=attrs.evolve(running.cpu, pin=new.cpu.pin))
    names = [field.name for field in attrs.fields(Resources)]
    seen = {
        name: getattr(new.resources, name)
        for name in names
        if getattr(old.resources, name) != getattr(new.resources, name)
    }
    running = attrs.evolve(running, resources=attrs.evolve(running.resources, **seen))
    if with_rates(old.nics, new.nics) != old.nics:
        running = attrs.evolve(running, nics=with_rates(running.nics, new.nics))
    return running


async def tune(kept: Kept, old: MachineSpec, new: MachineSpec) -> None:
    """Have a machine that runs as *new* says, where that is not as *old* does.

    Raises SpecInvalid, HostLacks; then it is as it was.
    """
    if tuned(old, old, new) == old:
        return
    if kept.vm is None:
        fault = Fault("resources", f"they cannot be changed: it is {kept.state}")
        raise SpecInvalid([fault], f"machine {kept.name!r}")
    await kept.vm.tune.apply(lambda spec: tuned(spec, old, new))
