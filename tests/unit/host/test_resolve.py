"""A spec brought together with a host that is made up, so that every answer is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import BinaryMissing, Fault, KvmUnavailable, LaunchFailed, SpecInvalid
from qmpkit.host import binary
from qmpkit.host import resolve as resolve_module
from qmpkit.host.capabilities import Capabilities, MachineType, Stamp, store
from qmpkit.host.kvm import KvmFacts
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.spec.block import Disk
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.machine import Kernel, MachineSpec

HARDWARE = KvmFacts("hardware", True, "KVM is hardware KVM (VT-x, kvm_intel); /dev/kvm works")
ABSENT = KvmFacts("none", False, "/dev/kvm does not exist", "sudo modprobe kvm_intel")
ANSWERS = Capabilities(
    version=(7, 2, 22),
    package="",
    arch="x86_64",
    accelerators=("kvm", "tcg"),
    machines=(MachineType("pc-q35-7.2", "q35", max_cpus=288), MachineType("microvm")),
    cpu_models=("Nehalem", "max", "qemu64"),
    commands=frozenset(),
    run_with_user=True,
)
Host = Callable[..., Path]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Sets up the host: its KVM, and what its only QEMU is known to answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "qemu-system-x86_64"
    path.write_text("#!/bin/sh\necho this is no QEMU >&2\nexit 3\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(binary, "_remembered", {})
    monkeypatch.setattr(resolve_module, "host_arch", lambda: "x86_64")

    def arrange(kvm: KvmFacts = HARDWARE, **answers: Any) -> Path:
        monkeypatch.setattr(resolve_module, "kvm_facts", lambda: kvm)
        store(Stamp.of(path), attrs.evolve(ANSWERS, **answers))
        return path

    return arrange


async def faults(spec: MachineSpec, **options: Any) -> tuple[Fault, ...]:
    with pytest.raises(SpecInvalid) as caught:
        await resolve(spec, **options)
    assert caught.value.source == f"machine {spec.name!r}"
    return caught.value.faults


async def test_what_comes_out(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_bytes(bytes(512))
    found = await resolve(MachineSpec(disks=(Disk("a:b", format="raw"),)))
    assert isinstance(found, Resolution)
    assert found.spec.machine == "pc-q35-7.2"
    assert found.spec.accel == "kvm"
    assert found.spec.disks[0].file == str(tmp_path / "a:b")
    assert found.spec.qemu is None
    assert (found.facts.binary, found.facts.accel) == (str(path), "kvm")
    assert (found.facts.run_with_user, found.kvm.kind) == (True, "hardware")
    assert found.warnings == ()


async def test_wrong_types_come_before_everything_else(host: Host) -> None:
    host()
    assert await faults(MachineSpec(accel="hvf", cpu=Cpu("2"), qemu="none")) == (  # type: ignore[arg-type]
        Fault("accel", "must be one of 'auto', 'kvm', 'tcg', not 'hvf'"),
        Fault("cpu.cpus", "must be a whole number, not a text: '2'"),
    )
    with pytest.raises(SpecInvalid, match=r"^a machine is a MachineSpec, not 'tiny'"):
        await resolve("tiny")  # type: ignore[arg-type]


async def test_a_directory_that_is_gone_is_not_asked_for(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert (await resolve(MachineSpec(disks=[Disk("/dev/zero", format="raw")]), check=False)).spec


async def test_resolving_again_changes_nothing(host: Host) -> None:
    host()
    once = await resolve(MachineSpec())
    assert await resolve(once.spec) == once


async def test_variables(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host()
    kernel = tmp_path / "cache" / "vmlinuz"
    kernel.write_text("kernel")
    monkeypatch.setattr("qmpkit.host.variables._tsc_khz", lambda: None)
    append = "console=ttyS0 tsc_early_khz=${tsc_khz} quiet"
    found = await resolve(MachineSpec(kernel=Kernel("${cache}/vmlinuz", append=append)))
    assert found.spec.kernel == Kernel(str(kernel), append="console=ttyS0 quiet")


async def test_unknown_variable_names_the_known(host: Host) -> None:
    host()
    spec = MachineSpec(kernel=Kernel("${cahe}/vmlinuz"), disks=(Disk("absent", format="raw"),))
    (fault,) = await faults(spec)
    assert (fault.path, fault.message) == ("kernel.image", "unknown variable ${cahe}")
    assert "cache" in fault.hint


async def test_no_kvm_warns_and_says_the_cure(host: Host) -> None:
    host(ABSENT)
    found = await resolve(MachineSpec())
    assert found.facts.accel == found.spec.accel == "tcg"
    (warning,) = found.warnings
    assert "/dev/kvm does not exist (sudo modprobe kvm_intel)" in warning


async def test_kvm_demanded_and_absent(host: Host) -> None:
    host(ABSENT)
    with pytest.raises(KvmUnavailable) as caught:
        await resolve(MachineSpec(accel="kvm"))
    assert str(caught.value) == (
        "machine 'vm': "
        'accel = "kvm" was asked for, but /dev/kvm does not exist. Cure: sudo modprobe kvm_intel'
    )


async def test_missing_binary(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BinaryMissing) as caught:
        await resolve(MachineSpec())
    assert str(caught.value) == (
        "machine 'vm': qemu-system-x86_64 is not on PATH. Cure: sudo apt install qemu-system-x86"
    )


async def test_a_named_binary_becomes_a_path(host: Host) -> None:
    path = host()
    found = await resolve(MachineSpec(qemu="qemu-system-x86_64"))
    assert found.spec.qemu == found.facts.binary == str(path)


async def test_everything_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of the spec, of its files and of the host, in one go."""
    host(ABSENT)
    monkeypatch.setenv("PATH", "/nowhere")
    disk = Disk("/absent/disk", format="raw", boot=-1)
    found = await faults(MachineSpec(accel="kvm", disks=(disk,)))
    assert [fault.path for fault in found] == ["disks[0].boot", "qemu", "disks[0].file", "accel"]


async def test_unchecked(host: Host) -> None:
    host()
    spec = MachineSpec(disks=(Disk("/absent/disk", format="raw"),))
    found = await resolve(spec, check=False)
    assert found.spec.disks == spec.disks
    (fault,) = await faults(attrs.evolve(spec, machine_options={"": 1}), check=False)
    assert fault.path.startswith("machine_options")


async def test_unknown_machine_version(host: Host) -> None:
    host()
    (fault,) = await faults(MachineSpec(machine="pc-q35-9.9"))
    assert str(fault) == (
        "machine: QEMU 7.2.22 has no machine type 'pc-q35-9.9' (did you mean 'pc-q35-7.2'?)"
    )


async def test_more_processors_than_the_board_takes(host: Host) -> None:
    host(machines=(MachineType("pc-q35-7.2", "q35", max_cpus=4),))
    cpu: Any = {"cpus": 2, "maxcpus": 8}
    (fault,) = await faults(MachineSpec(cpu=attrs.evolve(MachineSpec().cpu, **cpu)))
    assert str(fault) == "cpu.maxcpus: pc-q35-7.2 takes at most 4 processors"


@pytest.mark.parametrize(
    ("model", "kvm", "message"),
    [
        ("nehalem", HARDWARE, "cpu.model: QEMU has no CPU model 'nehalem'"),
        ("host", ABSENT, 'cpu.model: "host" needs KVM (leave it out: it is chosen by itself)'),
    ],
)
async def test_cpu_models(host: Host, model: str, kvm: KvmFacts, message: str) -> None:
    host(kvm)
    cpu: Any = {"model": model}
    (fault,) = await faults(MachineSpec(cpu=attrs.evolve(MachineSpec().cpu, **cpu)))
    assert str(fault).startswith(message)


@pytest.mark.parametrize("model", ["host", "max", None])
async def test_cpu_models_that_are_there(host: Host, model: str | None) -> None:
    host()
    cpu: Any = {"model": model}
    await resolve(MachineSpec(cpu=attrs.evolve(MachineSpec().cpu, **cpu)))


async def test_a_binary_that_cannot_list_models(host: Host) -> None:
    host(cpu_models=())
    cpu: Any = {"model": "anything"}
    await resolve(MachineSpec(cpu=attrs.evolve(MachineSpec().cpu, **cpu)))


async def test_a_binary_for_another_architecture(host: Host) -> None:
    host(arch="aarch64")
    (fault,) = await faults(MachineSpec())
    assert str(fault) == "qemu: this binary is for aarch64, the machine is x86_64"


async def test_a_file_that_is_no_qemu(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host()
    Stamp.of(path).entry.unlink()
    with pytest.raises(LaunchFailed) as caught:
        await resolve(MachineSpec())
    assert caught.value.status == "exit status 3"
    assert "this is no QEMU" in str(caught.value)
    assert "name a qemu-system-… binary" in caught.value.cure
