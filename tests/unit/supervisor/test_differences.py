"""What is told of a machine that lacks what its spec has."""

from __future__ import annotations

from qmpkit.spec.cpu import Cpu
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import UserNic
from qmpkit.spec.peripherals import Rng
from qmpkit.supervisor.differences import device_differences


def test_each_that_is_not_there_is_named() -> None:
    memory = Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="128MiB")])
    spec = MachineSpec(
        nics=[UserNic()], devices=[Rng()], memory=memory, cpu=Cpu(1, 4, added=[2]), root_ports=2
    )
    named = ("nic0", "rng1", "dimm0", "cpu2")
    assert list(device_differences(spec, named)) == []
    told = list(device_differences(spec, ()))
    kinds = ("NIC", "device", "memory", "processor")
    assert told == [
        f"{kind} {name!r} is not there, and its spec says that it is"
        for kind, name in zip(kinds, named, strict=True)
    ]
