"""Many machines in one file: what a farm.toml says, as data; `farm_load` reads one."""

from __future__ import annotations

from typing import Any

import attrs

from qmpkit.spec.cloud_init import CloudInit
from qmpkit.spec.farm_networks import Network
from qmpkit.spec.health import Health
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import NEVER, Restart

__all__ = ["Farm", "FarmMachine", "Flaw", "Joined"]


@attrs.frozen(kw_only=True)
class Joined:
    """A NIC's place in a network: `nic` is its id in the spec, `ip` its fixed address, if any.

    The network itself is part of it, so that a machine is known without its farm.
    """

    name: str
    network: Network
    nic: str
    ip: str | None = None


@attrs.frozen
class Flaw:
    """Something of a machine's networks that is not as it was made: somebody has removed it, say.

    `what`: it, and what has become of it.  `mendable`: it can be made anew while the machine
    runs; otherwise a restart does it.
    """

    what: str
    mendable: bool


@attrs.frozen(kw_only=True)
class FarmMachine:
    """One machine of a farm, nothing left open: MACs, node names and paths are in `spec`.

    `group`: the table it came from, which `count` multiplies.  `seed`: what cloud-init is
    told, None: no seed.  `restart`: "never" by default.  `health`: None: no checks.
    `after`: machines that are up before this one starts.  `requires`: the same, and without
    them it does not start.  Both name machines, not tables.
    """

    name: str
    group: str
    spec: MachineSpec
    seed: CloudInit | None = None
    networks: tuple[Joined, ...] = ()
    restart: Restart = NEVER
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The machines of `after` and `requires`."""
        return tuple(dict.fromkeys((*self.after, *self.requires)))


@attrs.frozen(kw_only=True)
class Farm:
    """The machines and networks of a file, in the order of its tables.

    `tables`: each machine's table whole, with its profile, defaults and variables in it and
    every path absolute; what `scale` makes further machines from.
    """

    machines: tuple[FarmMachine, ...] = ()
    networks: dict[str, Network] = attrs.field(factory=dict)
    tables: dict[str, dict[str, Any]] = attrs.field(factory=dict)
