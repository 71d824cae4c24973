"""`cpu.pin = "auto"` decided on, by who sits where in this moment.  Blocking."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

from qmpkit.host.placement import placed
from qmpkit.host.sitting import Sitting, occupied, sittings
from qmpkit.host.topology import Topology, topology
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.number_list import numbers_of
from qmpkit.spec.resources import AUTO

__all__ = ["decided"]

_PROMISED = 60.0
"""Seconds in which a machine is taken for one that is about to sit where it was put."""

_lock = threading.Lock()
_promises: dict[str, tuple[float, tuple[int, ...]]] = {}


def decided(spec: MachineSpec, root: Path = Path("/")) -> MachineSpec:
    """*spec* with processors of this host in place of "auto"; HostLacks when none fit.

    Machines that are being started by this program count too: a farm that comes up at once
    would sit on one another.
    """
    if spec.cpu.pin != AUTO:
        return spec
    host = topology(root)
    others = tuple(it for it in sittings(root) if it.machine != spec.name)
    with _lock:
        taken = occupied(others, len(host.processors)) + _promised(spec.name, others, host)
        done = placed(spec, host, taken)
        pins = done.cpu.pin or ()
        cpus = tuple(cpu for places in pins for cpu in numbers_of(places))
        _promises[spec.name] = (time.monotonic(), cpus)
    return done


def _promised(name: str, others: tuple[Sitting, ...], host: Topology) -> Counter[int]:
    """The processors of those that are not there yet, or not yet where they were put."""
    now, online = time.monotonic(), len(host.processors)
    for machine, (since, _) in list(_promises.items()):
        if now - since > _PROMISED:
            del _promises[machine]
    there = {it.machine for it in others if any(len(t.allowed) < online for t in it.vcpus)}
    taken: Counter[int] = Counter()
    for machine, (_, cpus) in _promises.items():
        if machine != name and machine not in there:
            taken.update(cpus)
    return taken
