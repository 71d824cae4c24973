"""What is found before a start: all of it, in words that name the field and the cure."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import BinaryMissing, Fault, HostLacks, SpecInvalid
from qmpkit.host import check_network
from qmpkit.host.findings import Problem, lacking, raise_problems
from qmpkit.host.preflight import host_warnings, memory_warning, preflight
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.network import Forward, StreamNic, TapNic, UserNic


def told(spec: MachineSpec, root: Path = Path("/")) -> list[str]:
    return [str(problem.fault) for problem in preflight(spec, root)]


def forwarding(*forwards: Forward) -> MachineSpec:
    return MachineSpec(nics=(UserNic(forwards=forwards),))


def test_port_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (found,) = told(forwarding(Forward(0, 80), Forward(port, 22)))
    name = Path("/proc/self/comm").read_text().strip()
    assert found == (
        f"nics[0].forwards[1].host: tcp port {port} is taken by {name} (pid {os.getpid()}) "
        "(choose another, or 0 for any free one)"
    )
    assert told(forwarding(Forward(port, 22))) == []


def test_udp_port_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        (found,) = told(forwarding(Forward(port, 53, "udp")))
    assert f"udp port {port} is taken by" in found


def test_a_port_in_time_wait_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()  # the side that closes first waits
    assert told(forwarding(Forward(port, 22))) == []


def test_one_port_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    one, other = Forward(port, 22), Forward(port, 80, address="0.0.0.0")
    assert told(forwarding(one, other)) == [
        f"nics[0].forwards[1].host: port {port} is forwarded by nics[0].forwards[0] already"
    ]
    assert told(forwarding(one, Forward(port, 53, "udp"))) == []


def test_an_address_of_another_host() -> None:
    (found,) = told(forwarding(Forward(8022, 22, address="192.0.2.1")))
    assert found == (
        'nics[0].forwards[0].host: 192.0.2.1 is not an address of this host (address = "127.0.0.1")'
    )


def test_a_port_that_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(13, "Permission denied")
    explained = check_network._explain_port(Forward(80, 80), error, Path("/"))
    assert explained == ("tcp port 80 needs root on this host", "choose one above 1023")


@pytest.mark.parametrize("forward", [Forward(70000, 22), Forward(22, 22, address="example.org")])
def test_what_the_spec_alone_gets_wrong_is_not_tried(forward: Forward) -> None:
    assert told(forwarding(forward)) == []


def host_with(root: Path, *devices: str, net: dict[str, str] | None = None) -> Path:
    for name in devices:
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / name).touch()
    for name, flags in (net or {}).items():
        (root / "sys/class/net" / name).mkdir(parents=True)
        if flags:
            (root / "sys/class/net" / name / "tun_flags").write_text(flags)
    return root


def test_tap(tmp_path: Path) -> None:
    root = host_with(tmp_path, "net/tun", net={"tap0": "0x1002\n", "tun0": "0x1001\n", "eth0": ""})

    def about(name: str) -> list[str]:
        return told(MachineSpec(nics=(TapNic(ifname=name),)), root)

    assert about("tap0") == []
    assert about("tun0") == ["nics[0].ifname: 'tun0' is no tap device"]
    assert about("eth0") == ["nics[0].ifname: 'eth0' is no tap device"]
    assert about("tap7") == [
        "nics[0].ifname: there is no tap device 'tap7' "
        "(sudo ip tuntap add dev tap7 mode tap user $USER)"
    ]


def test_tap_without_tun_and_vhost(tmp_path: Path) -> None:
    root = host_with(tmp_path, net={"tap0": "0x1002"})
    tun, vhost = preflight(MachineSpec(nics=(TapNic(ifname="tap0", vhost=True),)), root)
    assert isinstance(tun.alone, HostLacks)
    assert isinstance(vhost.alone, HostLacks)
    assert "sudo modprobe tun" in str(tun.alone)
    assert vhost.fault.path == "nics[0].vhost"


def test_in_another_namespace_nothing_is_known(tmp_path: Path) -> None:
    nics = (TapNic(ifname="tap0"), UserNic(forwards=(Forward(1, 22, address="192.0.2.1"),)))
    assert told(MachineSpec(nics=nics, launcher=("env",)), tmp_path) == []


def test_stream_socket(tmp_path: Path) -> None:
    path = tmp_path / "cable"
    spec = MachineSpec(nics=(StreamNic(address=f"unix:{path}"),))
    assert told(spec) == [
        f"nics[0].address: there is no socket {str(path)!r} "
        "(start its other end first, or server = true)"
    ]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert told(spec) == []
    path.unlink()
    assert told(MachineSpec(nics=(StreamNic(address=f"unix:{path}", server=True),))) == []


def test_vsock(tmp_path: Path) -> None:
    (problem,) = preflight(MachineSpec(vsock=3), tmp_path)
    assert isinstance(problem.alone, HostLacks)
    assert "sudo modprobe vhost_vsock" in problem.alone.cure
    assert told(MachineSpec(vsock=3), host_with(tmp_path, "vhost-vsock")) == []


def test_run_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert told(MachineSpec(run_as=pwd.getpwuid(0).pw_name)) == []
    assert told(MachineSpec(run_as="1000:1000")) == []
    assert told(MachineSpec(run_as="nosuchuser")) == [
        "run_as: there is no user 'nosuchuser' (sudo useradd --system nosuchuser)"
    ]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert told(MachineSpec(run_as="1000:1000")) == [
        "run_as: only root can become another user (leave it out)"
    ]


def test_launcher() -> None:
    (problem,) = preflight(MachineSpec(launcher=("no-such-launcher", "-x")))
    assert isinstance(problem.alone, BinaryMissing)
    assert told(MachineSpec(launcher=("env",))) == []


def test_memory_file(tmp_path: Path) -> None:
    memory: Any = {"mem_path": tmp_path / "absent" / "ram"}
    spec = MachineSpec(memory=attrs.evolve(MachineSpec().memory, **memory))
    assert told(spec) == [
        f"memory.mem_path: the directory {str(tmp_path / 'absent')!r} does not exist"
    ]


def test_memory_is_a_warning_only(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 1048576 kB\n")
    assert memory_warning(MachineSpec(memory="1GiB"), tmp_path) is None
    warning = memory_warning(MachineSpec(memory="2GiB"), tmp_path)
    assert warning is not None
    assert warning.startswith("the guest may use 2GiB and the host has 1024 MiB left")
    assert memory_warning(MachineSpec(), tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("machine", "nics", "over", "fits"),
    [
        ("microvm", 2, 4096 - 1184, True),
        ("microvm", 3, 4096 - 1184, False),
        ("microvm", 3, 4, True),
        ("microvm", 0, 0, False),
        ("q35", 3, 0, True),
    ],
)
def test_an_initrd_over_a_microvms_tables(
    tmp_path: Path, machine: str, nics: int, over: int, fits: bool
) -> None:
    """As of QEMU 10.0: with what this one leaves of its last page two NICs boot, three hang."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4096 + over))
    spec = MachineSpec(
        machine=machine,
        memory="64MiB",
        kernel=Kernel("vmlinux", str(initrd)),
        nics=(UserNic(),) * nics,
        agent=True,
        rng=True,
    )
    found = [it for it in host_warnings(spec) if it.startswith("kernel.initrd")]
    assert bool(found) is not fits
    assert fits or f"truncate --size {4096 * (2 if over else 1) + 4} " in found[0]


def test_nul_bytes_are_the_specs_own_fault() -> None:
    nics = (StreamNic(address="unix:/a\0b"), TapNic(ifname="a\0b"))
    disks = (
        Disk("a\0b", format="raw"),
        Disk("", format="raw"),
        Disk("c", format="qcow2", make=Overlay("a\0b", format="raw")),
    )
    spec = MachineSpec(disks=disks, nics=nics, kernel=Kernel("a\0b"), run_as="a\0b")
    preflight(spec)  # does not raise


# --- how it is told


def test_all_at_once(tmp_path: Path) -> None:
    spec = MachineSpec(
        name="web",
        kernel=Kernel(tmp_path / "vmlinuz"),
        disks=(Disk(tmp_path / "disk", format="qcow2"),),
        vsock=3,
    )
    with pytest.raises(SpecInvalid) as caught:
        raise_problems(preflight(spec, tmp_path), "machine 'web'")
    assert [fault.path for fault in caught.value.faults] == [
        "kernel.image",
        "disks[0].file",
        "vsock",
    ]
    assert str(caught.value).startswith("machine 'web': 3 faults:\n")


def test_one_problem_of_the_host_is_its_own_error() -> None:
    error = HostLacks("no vsock", "modprobe")
    with pytest.raises(HostLacks) as caught:
        raise_problems([lacking("vsock", error)], "")
    assert caught.value is error
    with pytest.raises(SpecInvalid) as invalid:
        raise_problems([Problem(Fault("name", "is empty"))], "machine 'x'")
    assert str(invalid.value) == "machine 'x': name: is empty"
    raise_problems([], "")
