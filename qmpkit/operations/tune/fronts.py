"""`vm.tune`: where a machine's threads run and what it may use, changed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import trio

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.operations.tune.live import Tuned, apply
from qmpkit.operations.tune.threads import Threads, Tunable, find_threads
from qmpkit.process.cgroup import Pressure, group_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.resources import Resources, to_pin
from qmpkit.spec.suggest import unknown_key

__all__ = ["Tune"]

_KINDS = ("cpu", "memory", "io")


class Tune:
    """What one machine is given of its host.

    Changes are made at once where that is possible, `vm.spec` follows, and a kept machine's
    record: it has them again after a restart, and when it is found again.  When one fails or
    is cancelled all is as it was.  They raise SpecInvalid, or HostLacks for what this host
    does not have or we have no right to.
    """

    def __init__(self, machine: Tunable) -> None:
        self._machine = machine

    async def threads(self) -> Threads:
        """QEMU's threads: of vCPUs, of iothreads, the rest (query-cpus-fast, query-iothreads)."""
        return await find_threads(self._machine)

    async def apply(self, new: MachineSpec | Callable[[MachineSpec], MachineSpec]) -> Tuned:
        """Make *new*, an `attrs.evolve` of `vm.spec`, true as far as a running machine can be.

        A function makes it of the spec that the machine has when all changes before this one
        are done: so that of several at the same time none takes another back.

        Changed at once: `cpu.pin`, the rates of tap NICs, and `resources`, of which limits
        need that the machine was started with one.  The rest waits: start it from *new* the
        next time.
        """
        return await apply(self._machine, new if callable(new) else lambda _: new)

    async def pin(self, pin: str | Iterable[str] | None) -> Tuned:
        """Put the vCPUs on other processors of the host; see `Cpu.pin`.  None lets them go."""
        wanted = to_pin(pin)
        return await self.apply(
            lambda spec: attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, pin=wanted))
        )

    async def limit(self, **changes: Any) -> Tuned:
        """Change fields of `Resources`: `limit(cpu_max=1.5, nice=5)`; None takes one away."""
        known = [field.name for field in attrs.fields(Resources)]
        faults = [
            unknown_key(f"resources.{name}", name, known) for name in changes if name not in known
        ]
        if faults:
            raise SpecInvalid(faults, f"machine {self._machine.name!r}")
        return await self.apply(
            lambda spec: attrs.evolve(spec, resources=attrs.evolve(spec.resources, **changes))
        )

    async def pressure(self) -> Mapping[str, Pressure]:
        """How long its threads have waited for "cpu", "memory" and "io" (PSI).

        HostLacks for a machine without a control group: one is made for those with a limit.
        """
        pid = self._machine.child.pid
        group = await trio.to_thread.run_sync(group_of, pid)
        if group is None:
            what = f"machine {self._machine.name!r} has no control group of its own"
            raise HostLacks(what, "start it with a limit, as resources.cpu_weight = 100")
        return await trio.to_thread.run_sync(
            lambda: {kind: group.pressure(kind) for kind in _KINDS}
        )
