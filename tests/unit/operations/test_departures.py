"""What the spec of a machine is when its guest has let go of a device by itself."""

from __future__ import annotations

import attrs

from qmpkit import Disk, MachineSpec, Resources
from qmpkit.operations.hotplug.departures import _without
from qmpkit.spec.check import faults_of


def test_pins_of_an_iothread_go_with_its_last_disk() -> None:
    one, two = (Disk(f"/{name}.raw", format="raw", iothread="io") for name in "ab")
    spec = MachineSpec(name="vm", disks=[one, two], resources=Resources(iothreads={"io": "0"}))
    left = _without(spec, "disk0")
    assert left.resources == spec.resources
    last = _without(left, "disk1")
    assert (last.disks, last.resources, faults_of(last)) == ((), Resources(), ())
    assert attrs.evolve(last, disks=spec.disks, resources=spec.resources) == spec
