"""What is found before a start: all of it, in words that name the field and the cure."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import BinaryMissing, Fault, HostLacks, ImageInUse, SpecInvalid
from qmpkit.host import check_files, check_network
from qmpkit.host import preflight as preflight_module
from qmpkit.host.findings import Problem, lacking, raise_problems
from qmpkit.host.preflight import memory_warning, preflight
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.network import Forward, StreamNic, TapNic, UserNic
from tests.unit.host.images_on_disk import qcow2, raw


def told(spec: MachineSpec, root: Path = Path("/")) -> list[str]:
    return [str(problem.fault) for problem in preflight(spec, root)]


def one_disk(file: Path, format: str = "qcow2", **more: Any) -> MachineSpec:
    disk = Disk(file, format=format, **more)  # type: ignore[arg-type]
    return MachineSpec(disks=(disk,))


# --- images


def test_nothing_to_complain_about(tmp_path: Path) -> None:
    spec = MachineSpec(
        kernel=Kernel(raw(tmp_path / "kernel"), raw(tmp_path / "initrd")),
        firmware=str(raw(tmp_path / "bios")),
        disks=(
            Disk(qcow2(tmp_path / "a,b\n'c'"), format="qcow2"),
            Disk(raw(tmp_path / "raw"), format="raw"),
            Disk(tmp_path / "new", format="qcow2", make="1GiB"),
        ),
        nics=(UserNic(forwards=(Forward(0, 22),)),),
    )
    assert told(spec) == []


def test_missing_image(tmp_path: Path) -> None:
    path = tmp_path / "absent.qcow2"
    assert told(one_disk(path)) == [
        f'disks[0].file: {str(path)!r} does not exist (make = "10GiB" has it made at start)'
    ]


def test_missing_image_with_a_similar_name(tmp_path: Path) -> None:
    qcow2(tmp_path / "debian.qcow2")
    path = tmp_path / "debain.qcow2"
    assert told(one_disk(path)) == [
        f"disks[0].file: {str(path)!r} does not exist (did you mean 'debian.qcow2'?)"
    ]


def test_qcow2_said_to_be_raw(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "image")
    assert told(one_disk(path, "raw")) == [
        f'disks[0].format: {str(path)!r} is qcow2, not raw (format = "qcow2")'
    ]


def test_raw_said_to_be_qcow2(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    assert told(one_disk(path)) == [
        f'disks[0].format: {str(path)!r} is raw, not qcow2 (format = "raw")'
    ]


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b"", 'is empty, not qcow2 (remove it and have it made with make = "10GiB")'),
        (b"KDMV", "is vmdk, not qcow2 (qemu-img convert -f vmdk -O qcow2)"),
        (b"\xfd7zXZ\0", "is compressed (xz), not qcow2 (unpack it)"),
    ],
)
def test_other_formats(tmp_path: Path, content: bytes, ending: str) -> None:
    path = raw(tmp_path / "image", content)
    assert told(one_disk(path)) == [f"disks[0].format: {str(path)!r} {ending}"]


def test_a_compressed_raw_image(tmp_path: Path) -> None:
    path = raw(tmp_path / "image.xz", b"\xfd7zXZ\0")
    assert told(one_disk(path, "raw")) == [
        f"disks[0].format: {str(path)!r} is compressed (xz), not raw (unpack it)"
    ]


def test_a_directory(tmp_path: Path) -> None:
    (found,) = told(one_disk(tmp_path, "raw"))
    assert found == f"disks[0].file: {str(tmp_path)!r} cannot be read: is a directory"


def test_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(check_files, "_open_once", refuse)  # root may read everything
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw")) == [
        f"disks[0].file: {str(path)!r} cannot be read: permission denied"
    ]


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw")) == [
        f"disks[0].file: {str(path)!r} may not be written (readonly = true)"
    ]
    assert told(one_disk(path, "raw", readonly=True)) == []


def test_a_file_is_no_block_device(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw", driver="host_device")) == [
        f'disks[0].file: {str(path)!r} is no block device (driver = "file")'
    ]


def test_missing_base(tmp_path: Path) -> None:
    qcow2(tmp_path / "middle", "absent")
    qcow2(tmp_path / "top", str(tmp_path / "middle"))
    missing = str(tmp_path / "absent")
    assert told(one_disk(tmp_path / "top")) == [
        f"disks[0].file: its base {missing!r} does not exist "
        "(put it back, or name another with qemu-img rebase -u)"
    ]


def test_a_loop_of_bases(tmp_path: Path) -> None:
    qcow2(tmp_path / "one", "two")
    qcow2(tmp_path / "two", "one")
    top, again = str(tmp_path / "one"), str(tmp_path / "one")
    assert told(one_disk(tmp_path / "one")) == [
        f"disks[0].file: the bases of {top!r} form a loop at {again!r}"
    ]


def test_a_base_behind_a_protocol_is_left_to_qemu(tmp_path: Path) -> None:
    assert told(one_disk(qcow2(tmp_path / "top", "nbd://host/disk"))) == []


def test_two_disks_on_one_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    (tmp_path / "link").symlink_to(path)
    disks = (Disk(path, format="raw"), Disk(tmp_path / "link", format="raw"))
    assert told(MachineSpec(disks=disks)) == [
        f"disks[1].file: {str(tmp_path / 'link')!r} is the image of disks[0] too"
    ]
    readers = tuple(attrs.evolve(disk, readonly=True) for disk in disks)
    assert told(MachineSpec(disks=readers)) == []


@pytest.mark.parametrize("made", [False, True])
def test_a_base_that_a_sibling_writes(tmp_path: Path, made: bool) -> None:
    base = qcow2(tmp_path / "base")
    top = tmp_path / "top"
    if not made:
        qcow2(top, "base")
    overlay = Disk(top, format="qcow2", make=Overlay(base, format="qcow2"))
    spec = MachineSpec(disks=(overlay, Disk(base, format="qcow2")))
    assert told(spec) == [f"disks[0].file: its base {str(base)!r} is written by disks[1]"]


def test_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_files, "image_locked", lambda path, for_writing: for_writing)
    path = qcow2(tmp_path / "image")
    with path.open():
        (problem,) = preflight(one_disk(path))
    assert isinstance(problem.alone, ImageInUse)
    assert f"(pid {os.getpid()}) has it open" in str(problem.alone)
    assert str(problem.fault).startswith(f"disks[0].file: {str(path)!r} is in use: ")
    assert told(one_disk(path, readonly=True)) == []


# --- images to be made


def test_an_existing_target_is_checked_and_not_made(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk")
    assert told(one_disk(path, "raw", make="1GiB")) == []
    assert told(one_disk(path, "qcow2", make="1GiB")) == [
        f'disks[0].format: {str(path)!r} is raw, not qcow2 (format = "raw")'
    ]


def test_missing_directory(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    assert told(one_disk(folder / "disk", make="1GiB")) == [
        f"disks[0].file: the directory {str(folder)!r} does not exist (mkdir -p {folder})"
    ]


def test_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.X_OK)
    (found,) = told(one_disk(tmp_path / "disk", make="1GiB"))
    assert found.startswith(f"disks[0].file: no file can be made in {str(tmp_path)!r}")


def test_base_to_be_overlaid(tmp_path: Path) -> None:
    base = tmp_path / "base"
    spec = one_disk(tmp_path / "top", make=Overlay(base, format="qcow2"))
    assert told(spec) == [f"disks[0].make.file: {str(base)!r} does not exist"]
    raw(base)
    assert told(spec) == [f'disks[0].make.format: {str(base)!r} is raw, not qcow2 (format = "raw")']


def test_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = preflight(one_disk(tmp_path / "disk", make="1GiB"))
    assert isinstance(problem.alone, BinaryMissing)
    assert str(problem.fault) == (
        "disks[0].make: qemu-img is not on PATH (sudo apt install qemu-utils)"
    )


# --- the rest of the machine


def test_kernel_initrd_and_firmware(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "initrd")
    spec = MachineSpec(kernel=kernel, firmware=str(tmp_path / "bios"))
    assert [line.partition(":")[0] for line in told(spec)] == [
        "firmware",
        "kernel.image",
        "kernel.initrd",
    ]


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


def test_nul_bytes_are_the_specs_own_fault() -> None:
    nics = (StreamNic(address="unix:/a\0b"), TapNic(ifname="a\0b"))
    disks = (
        Disk("a\0b", format="raw"),
        Disk("", format="raw"),
        Disk("c", format="qcow2", make=Overlay("a\0b", format="raw")),
    )
    spec = MachineSpec(disks=disks, nics=nics, kernel=Kernel("a\0b"), run_as="a\0b")
    preflight_module.preflight(spec)  # does not raise


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
