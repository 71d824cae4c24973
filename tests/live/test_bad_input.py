"""Bad input through the public door: what is raised, every word of it, and nothing left behind."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, Forward, LaunchOptions, MachineSpec, UserNic
from qmpkit.host.kvm import User, probe_kvm
from qmpkit.testing.leaks import leaks

pytestmark = pytest.mark.live

Host = Callable[[int], None]


@pytest.fixture
def web(qemu: str) -> MachineSpec:
    """A sound machine, to be spoilt in one place."""
    return MachineSpec(name="web", qemu=qemu, accel="tcg", memory="16MiB")


async def refusal(
    kind: type[qmpkit.QmpkitError], spec: MachineSpec, options: LaunchOptions | None = None
) -> Any:
    """The error of exactly this type with which *spec* is refused, leaving nothing."""
    async with leaks():
        with pytest.raises(kind) as caught:
            async with qmpkit.running(spec, options=options):
                pytest.fail("it started")
    assert type(caught.value) is kind
    return caught.value


def _us() -> str:
    return Path("/proc/self/comm").read_text().strip()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# In a file


def profile(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "web.toml"
    path.write_text("\n".join(["schema = 1", 'name = "web"', *lines]))
    return path


def test_an_unknown_key(tmp_path: Path) -> None:
    path = profile(tmp_path, 'memroy = "1GiB"', "[cpu]", "threds = 2")
    with pytest.raises(qmpkit.SpecInvalid) as caught:
        qmpkit.load_profile(path)
    assert str(caught.value) == (
        f"{path}: 2 faults:\n"
        "  - cpu.threds: unknown key (did you mean 'threads'?)\n"
        "  - memroy: unknown key (did you mean 'memory'?)"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lots", '\'lots\' is not a size; write for example "512MiB" or "10GiB"'),
        ("1GX", "'1GX' has an unknown unit 'GX'; use KiB, MiB, GiB or TiB"),
        ("1GB", "'1GB' is ambiguous; qmpkit counts in 1024s: write GiB"),
    ],
)
def test_a_bad_size(tmp_path: Path, text: str, complaint: str) -> None:
    path = profile(tmp_path, f'memory = "{text}"')
    with pytest.raises(qmpkit.SpecInvalid) as caught:
        qmpkit.load_profile(path)
    assert str(caught.value) == f"{path}: memory.size: {complaint}"
    with pytest.raises(qmpkit.SpecInvalid) as caught:
        MachineSpec(memory=text)
    assert str(caught.value) == f"memory.size: {complaint}"


# Images


async def test_a_missing_image(web: MachineSpec, tmp_path: Path) -> None:
    (tmp_path / "debian.qcow2").touch()
    near, far = tmp_path / "debain.qcow2", tmp_path / "none.raw"
    disks = [Disk(near, format="qcow2"), Disk(far, format="raw")]
    error = await refusal(qmpkit.SpecInvalid, attrs.evolve(web, disks=disks))
    assert str(error) == (
        "machine 'web': 2 faults:\n"
        f"  - disks[0].file: '{near}' does not exist (did you mean 'debian.qcow2'?)\n"
        f"  - disks[1].file: '{far}' does not exist (make = \"10GiB\" has it made at start)"
    )


async def test_a_missing_cdrom_is_not_to_be_made(web: MachineSpec, tmp_path: Path) -> None:
    disks = [Disk(tmp_path / "a.iso", format="raw", interface="cdrom")]
    error = await refusal(qmpkit.SpecInvalid, attrs.evolve(web, disks=disks))
    assert str(error) == f"machine 'web': disks[0].file: '{tmp_path}/a.iso' does not exist"


async def test_the_wrong_format(web: MachineSpec, tmp_path: Path) -> None:
    raw = tmp_path / "a.img"
    raw.write_bytes(bytes(1 << 20))
    disks = [Disk(raw, format="qcow2")]
    error = await refusal(qmpkit.SpecInvalid, attrs.evolve(web, disks=disks))
    assert str(error) == (
        f"machine 'web': disks[0].format: '{raw}' is raw, not qcow2 (format = \"raw\")"
    )


async def test_raw_as_stated_whatever_its_guest_wrote(
    web: MachineSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evil = tmp_path / "evil.raw"
    base = await qmpkit.images.create(tmp_path / "secret", "1MiB", "raw")
    await qmpkit.images.overlay(evil, base, "raw")
    before = evil.read_bytes()
    disks = [Disk(evil, format="raw")]
    with caplog.at_level(logging.WARNING, "qmpkit"):
        async with leaks(), qmpkit.running(attrs.evolve(web, disks=disks), paused=True) as vm:
            (shown,) = await vm.execute("query-block")
            assert shown["inserted"]["drv"] == "raw"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"machine 'web': disks[0]: '{evil}' is used as raw, which is stated, but it begins as a "
        "qcow2 image with the base './secret' does: format = \"qcow2\" is right only if it is "
        "that, and not a disk whose guest has written it"
    )
    assert evil.read_bytes() == before


# The host


async def test_a_missing_binary(web: MachineSpec, tmp_path: Path) -> None:
    error = await refusal(qmpkit.BinaryMissing, attrs.evolve(web, qemu=tmp_path / "qemu"))
    assert str(error) == (
        f"machine 'web': '{tmp_path}/qemu' does not exist."
        " Cure: correct `qemu`, or sudo apt install qemu-system-x86"
    )


async def test_a_binary_that_is_no_qemu(web: MachineSpec) -> None:
    error = await refusal(qmpkit.LaunchFailed, attrs.evolve(web, qemu="/bin/false"))
    assert str(error).startswith(
        "machine 'web' did not start: QEMU ended with exit status 1.\n(it printed nothing)\n"
        "Cure: '/bin/false' is no QEMU: name a qemu-system-… binary in `qemu`\n"
        "Command: /bin/false -M none "
    )


@pytest.fixture
def host_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """This host as if its /proc, /sys and /dev were a tree with VT-x, and /dev/kvm like that."""
    root = tmp_path / "root"
    for folder in ("proc", "dev", "sys/module/kvm_intel"):
        (root / folder).mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu vme vmx\n")
    alice = User("alice", 1000, in_kvm_group=False)

    def failing(code: int) -> None:
        def opener(device: str, arch: str) -> None:
            raise OSError(code, os.strerror(code), device)

        facts = probe_kvm(root, arch="x86_64", opener=opener, user=alice)
        monkeypatch.setattr("qmpkit.host.resolve.kvm_facts", lambda: facts)

    return failing


async def test_no_dev_kvm(web: MachineSpec, host_with: Host) -> None:
    host_with(errno.ENOENT)
    error = await refusal(qmpkit.KvmUnavailable, attrs.evolve(web, accel="kvm"))
    assert str(error) == (
        "machine 'web': accel = \"kvm\" was asked for, but /dev/kvm does not exist although the"
        " kernel's KVM module is loaded. Cure: in a container, pass the device in"
        " (--device /dev/kvm); otherwise restart udev"
    )


async def test_an_unreadable_dev_kvm(web: MachineSpec, host_with: Host, tmp_path: Path) -> None:
    device = tmp_path / "root/dev/kvm"
    device.touch()
    device.chmod(0o600)
    host_with(errno.EACCES)
    error = await refusal(qmpkit.KvmUnavailable, attrs.evolve(web, accel="kvm"))
    group = device.group()
    assert str(error) == (
        "machine 'web': accel = \"kvm\" was asked for, but user 'alice' may not open"
        f" /dev/kvm (-rw-------, group {group}). Cure: sudo chgrp kvm /dev/kvm && sudo chmod"
        " 660 /dev/kvm, then join the group kvm"
    )


async def test_without_kvm_auto_starts_and_says_why(
    web: MachineSpec, host_with: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host_with(errno.ENOENT)
    with caplog.at_level(logging.WARNING, "qmpkit"):
        async with leaks(), qmpkit.running(attrs.evolve(web, accel="auto")) as vm:
            assert vm.accel == "tcg"
    (record,) = caplog.records
    assert record.getMessage() == (
        "machine 'web': KVM is not used, the guest runs much slower under TCG: /dev/kvm does not"
        " exist although the kernel's KVM module is loaded (in a container, pass the device in"
        " (--device /dev/kvm); otherwise restart udev)"
    )


async def test_a_port_that_is_taken(web: MachineSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        taken = attrs.evolve(web, nics=[UserNic(forwards=[Forward(host=port, guest=22)])])
        error = await refusal(qmpkit.SpecInvalid, taken)
        assert str(error) == (
            f"machine 'web': nics[0].forwards[0].host: tcp port {port} is taken by {_us()}"
            f" (pid {os.getpid()}) (choose another, or 0 for any free one)"
        )
    async with qmpkit.running(taken):
        pass


async def test_a_port_that_is_taken_behind_our_back(web: MachineSpec) -> None:
    """With a launcher QEMU may be in another network, so nothing is said before it tries."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        forward = Forward(host=holder.getsockname()[1], guest=22)
        taken = attrs.evolve(web, nics=[UserNic(forwards=[forward])], launcher=["/usr/bin/env"])
        error = await refusal(qmpkit.LaunchFailed, taken)
    assert error.status == "exit status 1"
    assert "Could not set up host forwarding rule" in str(error)
    assert "\nCure: choose another host port: this one is taken\n" in str(error)


# The machine's own contradictions


async def test_two_disks_with_one_node_name(web: MachineSpec, tmp_path: Path) -> None:
    disks = [Disk(tmp_path / name, format="raw", make="1MiB", node="data") for name in "ab"]
    error = await refusal(qmpkit.SpecInvalid, attrs.evolve(web, disks=disks))
    assert str(error) == (
        "machine 'web': disks[1].node: node name 'data' is already used by disks[0]"
    )
    assert not _entries(tmp_path)  # no image was made for nothing


async def test_more_devices_than_slots(web: MachineSpec) -> None:
    error = await refusal(qmpkit.SpecInvalid, attrs.evolve(web, nics=[UserNic()] * 17))
    assert str(error) == (
        "machine 'web': nics[16]: too many devices for the slots: room for 16 NICs"
    )
    async with leaks(), qmpkit.running(attrs.evolve(web, nics=[UserNic()] * 16), paused=True):
        pass


# A QEMU that does not get ready


async def test_a_qemu_that_dies_at_once(web: MachineSpec) -> None:
    error = await refusal(qmpkit.LaunchFailed, attrs.evolve(web, extra_args=["-m", "lots"]))
    assert str(error).startswith(
        "machine 'web' did not start: QEMU ended with exit status 1.\nqemu-system-x86_64: "
    )
    assert "Parameter 'size' expects a" in str(error)
    assert str(error).endswith(f"\nCommand: {shlex.join(error.argv)}")
    assert (error.argv[0], error.argv[-2:]) == (web.qemu, ("-m", "lots"))


async def test_a_qemu_that_never_greets(web: MachineSpec) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(99)"]
    options = LaunchOptions(ready_within=0.2)
    begun = trio.current_time()
    error = await refusal(qmpkit.LaunchFailed, attrs.evolve(web, launcher=words), options)
    assert trio.current_time() - begun < 5
    assert str(error) == (
        "machine 'web' did not start: QEMU did not get ready.\n(it printed nothing)\n"
        "Cure: it was silent for 0.2 s and was killed; raise `ready_within` if this host is that"
        f" slow\nCommand: {shlex.join(error.argv)}"
    )


# Monitors of others


async def test_a_monitor_that_another_holds(web: MachineSpec, tmp_path: Path) -> None:
    path = tmp_path / "tools"
    async with leaks(), qmpkit.running(web, options=LaunchOptions(tools_socket=path)):
        async with qmpkit.connect(path) as first:
            for _ in range(4):  # the fourth is turned away by the kernel, the others wait
                with pytest.raises(qmpkit.MonitorBusy) as caught:
                    async with qmpkit.connect(path, greeting_timeout=0.1):
                        pytest.fail("two clients at once")
                assert str(caught.value) == (
                    f"machine '{path}': the QMP monitor is held by another client. Cure: end the"
                    " other client, or start QEMU with a second monitor"
                    " (-qmp unix:PATH,server=on,wait=off) and give its path as `second`"
                )
            assert (await first.execute("query-name"))["name"] == "web"
        async with qmpkit.connect(path) as next_one:
            assert (await next_one.execute("query-status"))["running"]
    with pytest.raises(qmpkit.MonitorAbsent) as absent:
        async with qmpkit.connect(path):
            pytest.fail("it is gone")
    assert str(absent.value) == (
        f"no QMP monitor at '{path}': No such file or directory."
        " Cure: check the path; QEMU removes it when it ends"
    )


async def test_a_tools_socket_that_cannot_be(web: MachineSpec, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    options = LaunchOptions(tools_socket=there)
    error = await refusal(qmpkit.SpecInvalid, web, options)
    assert str(error) == f"machine 'web': {there}: this path exists (remove it or name another)"
    assert there.exists()
    options = LaunchOptions(tools_socket=tmp_path / "no/tools")
    error = await refusal(qmpkit.HostLacks, web, options)
    assert str(error) == (
        f"machine 'web': cannot make the socket {tmp_path}/no/tools: No such file or directory."
        f" Cure: mkdir -p {tmp_path}/no"
    )
