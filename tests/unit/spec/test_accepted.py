"""Real QEMU takes every command line we render: each device kind, on every board."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.spec.argv import TOOLS, render
from qmpkit.spec.block import Disk
from qmpkit.spec.chardev import Endpoint, FdEndpoint, PathEndpoint, Serial
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import Kernel, MachineSpec, channels, links
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import DgramNic, Forward, StreamNic, UserNic
from qmpkit.spec.profile import load_profile, profile_names
from qmpkit.spec.variables import expand
from tests.conftest import Board, binaries
from tests.sizes import QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*QEMU_VERSIONS)]

QUIT = b'{"execute":"qmp_capabilities"}{"execute":"query-status"}{"execute":"quit"}'
AWKWARD = "a,b 'c' \"d\"\n=e\\;é"


@contextlib.contextmanager
def endpoints(spec: MachineSpec) -> Iterator[tuple[dict[str, Endpoint], socket.socket]]:
    """A socketpair for every channel; our end of the monitor."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Endpoint] = {}
        monitor = None
        for name in (*channels(spec), *links(spec)):
            kind = socket.SOCK_STREAM
            if any(isinstance(nic, DgramNic) and nic.id == name for nic in spec.nics):
                kind = socket.SOCK_DGRAM
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            stack.enter_context(ours)
            stack.enter_context(theirs)
            found[name] = FdEndpoint(theirs.fileno())
            monitor = ours if name == "qmp" else monitor
        assert monitor is not None
        yield found, monitor


def start_and_quit(spec: MachineSpec, facts: Facts, **more: Endpoint) -> str:
    """Start paused, ask for the status, quit; gives what QEMU printed."""
    with endpoints(spec) as (found, monitor):
        monitor.sendall(QUIT)
        fds = [end.fd for end in found.values() if isinstance(end, FdEndpoint)]
        done = subprocess.run(
            render(spec, facts, {**found, **more}),
            pass_fds=fds,
            capture_output=True,
            check=False,
            timeout=60,  # a full machine on a busy host takes its time
            env={**os.environ, **spec.env},
        )
        said = done.stderr.decode()
        assert done.returncode == 0, said
        replies = monitor.recv(1 << 16).decode()
    # 7.2 says prelaunch, a migration's destination would say inmigrate.
    assert '"status": "prelaunch"' in replies
    return said


@pytest.fixture
def facts(qemu: str) -> Facts:
    helps = subprocess.run([qemu, "-help"], capture_output=True, check=True, text=True).stdout
    return Facts(binary=qemu, accel="tcg", run_with_user=bool(re.search("-run-with.*user=", helps)))


def of_arch(facts: Facts, arch: str, version: str) -> Facts:
    """The same for the QEMU of that version for guests of *arch*."""
    if version not in binaries(arch):
        pytest.skip(f"needs QEMU {version} for {arch}: scripts/setup --tests")
    return attrs.evolve(facts, binary=binaries(arch)[version])


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return os.fspath(path)


def images(tmp_path: Path, count: int) -> list[str]:
    paths = [tmp_path / f"disk{number}.img" for number in range(count)]
    for path in paths:
        path.write_bytes(bytes(1 << 16))
    return [os.fspath(path) for path in paths]


def test_a_q35_with_everything_starts(facts: Facts, tmp_path: Path) -> None:
    a, b, c, d, e, f, g = images(tmp_path, 7)
    spec = MachineSpec(
        name="every thing, here",
        cpu=Cpu(2, 4, flags=["-x2apic"], sockets=2, cores=2, threads=1),
        memory=Memory("64MiB", maxmem="1GiB", slots=4),
        machine_options={"hpet": False, "smm": "off"},
        disks=[
            Disk(a, format="raw", iothread="io", boot=1, serial="a,b c", discard=False),
            Disk(b, format="raw", interface="virtio-scsi", iothread="io", cache="writethrough"),
            Disk(c, format="raw", interface="nvme", cache="none", aio="native"),
            Disk(d, format="raw", interface="cdrom", boot=0),
            Disk(e, format="raw", interface="scsi-cdrom"),
            Disk(f, format="raw", cache="directsync", aio="io_uring", detect_zeroes="unmap"),
            Disk(g, format="raw", cache="unsafe", readonly=True, bus="spare-port1"),
        ],
        nics=[
            UserNic(
                net="10.9.0.0/24", restrict=True, forwards=[Forward(0, 22), Forward(0, 53, "udp")]
            ),
            UserNic(model="e1000e", mac="52:54:00:12:34:56"),
            StreamNic(address=f"unix:{tmp_path}/a,b", server=True),
            StreamNic(address="127.0.0.1:0", server=True),
            StreamNic(),
            DgramNic(),
            DgramNic(remote="230.0.0.1:15234", local="127.0.0.1:0"),
        ],
        serials=[
            Serial("com1"),
            Serial("com2"),
            Serial("hvc0", "virtio"),
            Serial("hvc1", "virtio"),
        ],
        agent=True,
        rng=True,
        balloon=True,
        vmgenid="auto",
        display="std",
        root_ports=4,
        no_reboot=True,
        uuid="0b5ef1e0-8fb1-4b0c-9a4c-0c3d7ab7a9b0",
    )
    assert start_and_quit(spec, facts) == ""


def test_a_microvm_with_everything_starts(facts: Facts, tmp_path: Path) -> None:
    a, b, c = images(tmp_path, 3)
    spec = MachineSpec(
        machine="microvm",
        disks=[
            Disk(a, format="raw", boot=0),
            Disk(b, format="raw", interface="virtio-scsi", serial="x"),
            Disk(c, format="raw", interface="scsi-cdrom"),
        ],
        nics=[UserNic(), StreamNic()],
        serials=[Serial("com1"), Serial("com2"), Serial("hvc0", "virtio")],
        agent=True,
        rng=True,
        balloon=True,
    )
    assert start_and_quit(spec, facts) == ""


@pytest.mark.parametrize("options", [{}, {"acpi": False}, {"ioapic2": "off"}], ids=str)
def test_a_full_microvm_starts(facts: Facts, tmp_path: Path, options: dict[str, Any]) -> None:
    paths = images(tmp_path, 8 if options else 23)
    disks = [Disk(path, format="raw") for path in paths]
    spec = MachineSpec(machine="microvm", machine_options=options, disks=disks, memory="64MiB")
    assert start_and_quit(spec, facts) == ""


def test_a_full_q35_starts(facts: Facts, tmp_path: Path) -> None:
    disks = [Disk(path, format="raw") for path in images(tmp_path, 48)]
    spec = MachineSpec(disks=disks, nics=[UserNic()] * 16, root_ports=32, memory="64MiB")
    assert start_and_quit(spec, facts) == ""


def test_a_virt_with_everything_starts(board: Board, tmp_path: Path) -> None:
    facts = Facts(binary=board.qemu, accel="tcg")
    a, b, c, d, e = images(tmp_path, 5)
    spec = MachineSpec(
        arch=board.arch,
        machine="virt",
        cpu=3,
        disks=[
            Disk(a, format="raw", iothread="io", boot=1, serial="a,b c", discard=False),
            Disk(b, format="raw", interface="virtio-scsi", iothread="io", cache="writethrough"),
            Disk(c, format="raw", interface="nvme", cache="none", aio="native"),
            Disk(d, format="raw", interface="scsi-cdrom", boot=0),
            Disk(e, format="raw", readonly=True, bus="spare-port1"),
        ],
        nics=[UserNic(forwards=[Forward(0, 22)]), UserNic(model="e1000e"), StreamNic(), DgramNic()],
        serials=[Serial("com1"), Serial("hvc0", "virtio"), Serial("hvc1", "virtio")],
        agent=True,
        rng=True,
        balloon=True,
        display="std",
        root_ports=4,
        no_reboot=True,
        uuid="0b5ef1e0-8fb1-4b0c-9a4c-0c3d7ab7a9b0",
    )
    assert start_and_quit(spec, facts) == ""


def test_a_full_virt_starts(board: Board, tmp_path: Path) -> None:
    facts = Facts(binary=board.qemu, accel="tcg")
    disks = [Disk(path, format="raw") for path in images(tmp_path, 48)]
    spec = MachineSpec(
        arch=board.arch,
        machine="virt",
        disks=disks,
        nics=[UserNic()] * 16,
        root_ports=32,
        memory="64MiB",
    )
    assert start_and_quit(spec, facts) == ""


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_starts(
    facts: Facts, qemu_version: str, name: str, tmp_path: Path
) -> None:
    # The files that a profile wants are another test's concern: here it gets dummies.
    spec = expand(load_profile(name), {"cache": os.fspath(tmp_path), "tsc_khz": "2000000"})
    facts = of_arch(facts, spec.arch, qemu_version)
    firmware = None
    if spec.firmware is not None:
        firmware = tmp_path / "firmware.bin"
        firmware.write_bytes(bytes(1 << 16))
    kernel = spec.kernel and Kernel(append=spec.kernel.append)
    disks = [
        attrs.evolve(disk, file=path, format="raw", make=None)
        for disk, path in zip(spec.disks, images(tmp_path, len(spec.disks)), strict=True)
    ]
    spec = attrs.evolve(spec, firmware=firmware, kernel=kernel, disks=disks)
    assert start_and_quit(spec, facts) == ""


@pytest.fixture
def awkward() -> Iterator[Path]:
    """A folder with a terrible name, high enough up for the paths of sockets."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / AWKWARD
        folder.mkdir()
        yield folder


def test_awkward_characters_reach_qemu_in_every_path(facts: Facts, awkward: Path) -> None:
    folder = awkward
    for name in ("disk", "ram"):
        (folder / name).write_bytes(bytes(16 << 20 if name == "ram" else 1 << 16))
    spec = MachineSpec(
        name="a,b 'c' \"d\" =e",
        memory=Memory("16MiB", mem_path=folder / "ram", share=True),
        disks=[Disk(folder / "disk", format="raw", serial="a,b\"'\\ =")],
        kernel=Kernel("/nowhere", append="a,b\n'c' \"d\""),
        nics=[StreamNic(address=f"unix:{folder}/cable", server=True)],
        uuid="0b5ef1e0-8fb1-4b0c-9a4c-0c3d7ab7a9b0",
    )
    tools = PathEndpoint(os.fspath(folder / "tools.sock"))
    with pytest.raises(AssertionError, match="/nowhere"):
        start_and_quit(spec, facts, tools=tools)
    named = attrs.evolve(spec, kernel=None, qemu=folder / "qemu,system")
    (folder / "qemu,system").symlink_to(facts.binary)
    assert (folder / "tools.sock").is_socket()  # left by the QEMU that found no kernel
    assert start_and_quit(named, facts, tools=tools) == ""
    # A path that came out wrong would have left RAM or a socket under another name.
    ours = {"disk", "ram", "qemu,system", "cable", "tools.sock"}
    assert {path.name for path in folder.iterdir()} <= ours
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("field", ["image", "initrd"])
def test_kernel_and_initrd_paths_are_taken_verbatim(
    facts: Facts, tmp_path: Path, field: str
) -> None:
    # No comma may be doubled here: QEMU takes these two as they are.
    kernel = tmp_path / "a,b 'kernel'"
    kernel.write_bytes(_bzimage())
    absent = tmp_path / "not,there"
    spec = MachineSpec(kernel=Kernel(absent) if field == "image" else Kernel(kernel, initrd=absent))
    with pytest.raises(AssertionError) as caught:
        start_and_quit(spec, facts)
    assert re.search(rf"(kernel file '|initrd ){re.escape(str(absent))}\b", str(caught.value))


def _bzimage() -> bytes:
    """As much of a Linux kernel as QEMU looks at."""
    image = bytearray(64 << 10)
    image[0x1F1] = 4
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x20C).to_bytes(2, "little")
    image[0x211] = 1
    image[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")
    return bytes(image)


@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "no sandbox"])
def test_run_as_is_spelled_as_the_binary_has_it(facts: Facts, sandbox: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    spec = MachineSpec(run_as="nobody", sandbox=sandbox)
    assert start_and_quit(spec, facts) == ""


def test_a_second_monitor_answers(facts: Facts) -> None:
    spec = MachineSpec()
    ours, theirs = socket.socketpair()
    with ours, theirs, endpoints(spec) as (found, monitor):
        fds = [end.fd for end in found.values() if isinstance(end, FdEndpoint)]
        argv = render(spec, facts, {**found, TOOLS: FdEndpoint(theirs.fileno())})
        ours.settimeout(20)
        with subprocess.Popen(argv, pass_fds=[*fds, theirs.fileno()]) as child:
            assert b'"QMP"' in ours.recv(4096)
            monitor.sendall(QUIT)
            assert child.wait(20) == 0


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_here")
@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_kvm_takes_it_too(facts: Facts, image: str, machine: str) -> None:
    # Without the flag QEMU aborts on a paravirtual KVM; on any other it changes little.
    kvm = attrs.evolve(facts, accel="kvm", cpu_flags=("-arch-capabilities",))
    disk = Disk(image, format="raw", iothread="io")
    spec = MachineSpec(machine=machine, cpu=2, disks=[disk], agent=True, rng=True)
    assert start_and_quit(spec, kvm) == ""


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("path", [False, True])
def test_ram_kinds(facts: Facts, tmp_path: Path, share: bool, path: bool) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(16 << 20))
    memory = Memory("16MiB", mem_path=ram if path else None, share=share, prealloc=True)
    assert start_and_quit(MachineSpec(memory=memory), facts) == ""


@pytest.mark.parametrize("size", ["524296KiB", "1GiB", "24MiB", "100008KiB"])
def test_odd_sizes_match_their_backend(facts: Facts, size: str) -> None:
    assert start_and_quit(MachineSpec(memory=size), facts) == ""
