"""Real QEMU takes nodes, placed memory, huge pages where there are some, and several iothreads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import attrs
import pytest

from qmpkit.spec.block import Disk
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.peripherals import VirtioMem
from tests.unit.spec.test_accepted import start_and_quit

pytestmark = pytest.mark.live

NODES = [
    NumaNode(cpus="0,2", memory="64MiB", host_nodes="0", distances={"1": 30}),
    NumaNode(cpus="1,3", memory="64MiB"),
]


def test_nodes_and_placed_memory(qemu: str) -> None:
    spec = MachineSpec(
        cpu=Cpu(2, maxcpus=4),
        memory=Memory("128MiB", merge=False, dump=False, prealloc=True, prealloc_threads=2),
        numa=NODES,
    )
    assert start_and_quit(spec, Facts(binary=qemu)) == ""
    one = Memory("64MiB", host_nodes="0", policy="preferred", lock=True)
    assert start_and_quit(MachineSpec(memory=one), Facts(binary=qemu)) == ""


def test_what_hotplug_has_added(qemu: str) -> None:
    dimms = [Dimm(size="128MiB", node=1), Dimm(size="128MiB", address=(4 << 30) + (512 << 20))]
    memory = Memory("128MiB", maxmem="2GiB", slots=2, dimms=dimms, free_page_reporting=True)
    spec = MachineSpec(
        cpu=Cpu(1, maxcpus=4, sockets=2, added=[3, 1]),
        memory=attrs.evolve(memory, deflate_on_oom=True),
        balloon=True,
        numa=NODES,
        devices=[VirtioMem(size="512MiB", requested="64MiB", node=1, address=5 << 30)],
    )
    assert start_and_quit(spec, Facts(binary=qemu)) == ""


def test_queues_of_a_disk(qemu: str, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    disk = Disk(str(image), format="raw", iothread="io", queues=4)
    assert start_and_quit(MachineSpec(disks=[disk]), Facts(binary=qemu)) == ""
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    if " 7." not in version:
        several = attrs.evolve(disk, iothread=None, iothreads=["a", "b"])
        assert start_and_quit(MachineSpec(disks=[several]), Facts(binary=qemu)) == ""
