"""UEFI in `resolve`: what it turns out to be, and what is not asked of a host in vain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.host import binary, flash
from qmpkit.host import resolve as resolve_module
from qmpkit.host.capabilities import Capabilities, MachineType, Stamp, store
from qmpkit.host.firmware import FirmwareFiles
from qmpkit.host.kvm import KvmFacts
from qmpkit.host.resolve import resolve
from qmpkit.spec.facts import Flash
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import Kernel, MachineSpec

MACHINES = {
    "x86_64": (MachineType("pc-q35-7.2", "q35", max_cpus=288), MachineType("microvm")),
    "riscv64": (MachineType("virt"),),
}


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two QEMUs whose answers are known, and one firmware for the PC."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(binary, "_remembered", {})
    monkeypatch.setattr(resolve_module, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(resolve_module, "kvm_facts", lambda: KvmFacts("none", False, "none"))
    for arch, version in (("x86_64", (7, 2, 22)), ("riscv64", (8, 1, 0))):
        answers(tmp_path, arch, version)
    for name in ("code", "empty"):
        (tmp_path / name).write_bytes(bytes(4096))
    pc = FirmwareFiles(
        code=str(tmp_path / "code"),
        template=str(tmp_path / "empty"),
        code_format="qcow2",
        targets=(("x86_64", "pc-q35-*"),),
    )
    monkeypatch.setattr(flash, "installed_firmware", lambda: (pc,))


def answers(folder: Path, arch: str, version: tuple[int, int, int]) -> None:
    path = folder / f"qemu-system-{arch}"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    known = Capabilities(
        version=version,
        package="",
        arch=arch,
        accelerators=("tcg",),
        machines=MACHINES[arch],
        cpu_models=(),
        commands=frozenset(),
        run_with_user=False,
    )
    store(Stamp.of(path), known)


async def told(spec: MachineSpec, **options: Any) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        await resolve(spec, **options)
    return [str(fault) for fault in caught.value.faults]


async def test_the_files_are_named_in_the_spec(tmp_path: Path) -> None:
    """So that a machine whose spec was kept finds the firmware of its store again."""
    code, template = str(tmp_path / "code"), str(tmp_path / "empty")
    found = await resolve(MachineSpec(firmware="uefi"))
    assert found.spec.firmware == Uefi(code, template)
    assert found.facts.flash == Flash(code=code, template=template, code_format="qcow2")


async def test_resolving_again_changes_nothing(tmp_path: Path) -> None:
    once = await resolve(MachineSpec(accel="tcg", firmware=Uefi(vars=tmp_path / "v")))
    assert await resolve(once.spec) == once


async def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = await resolve(MachineSpec(firmware=Uefi("code", "empty", "v")))
    assert found.spec.firmware == Uefi(tmp_path / "code", tmp_path / "empty", tmp_path / "v")
    assert found.facts.flash is not None
    assert found.facts.flash.code_format == "qcow2", "it is the one that is described"


async def test_variables(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    found = await resolve(MachineSpec(firmware=Uefi(vars="${cache}/v")))
    assert isinstance(found.spec.firmware, Uefi)
    assert found.spec.firmware.vars == str(tmp_path / "cache/v")


async def test_no_flash_for_others() -> None:
    assert (await resolve(MachineSpec())).facts.flash is None


async def test_the_hosts_lack_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "installed_firmware", lambda: ())
    with pytest.raises(HostLacks) as caught:
        await resolve(MachineSpec(name="web", firmware="uefi"))
    assert str(caught.value) == (
        "machine 'web': this host has no UEFI firmware for x86_64. Cure: sudo apt install ovmf"
    )


async def test_the_lack_is_told_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "installed_firmware", lambda: ())
    spec = MachineSpec(firmware="uefi", kernel=Kernel("/absent"), qemu="/nowhere/qemu")
    paths = [line.partition(":")[0] for line in await told(spec)]
    assert sorted(paths) == ["firmware", "kernel.image", "qemu"]


async def test_a_store_is_not_looked_at_unchecked() -> None:
    spec = MachineSpec(firmware=Uefi(vars="/absent/v"))
    assert (await resolve(spec, check=False)).spec.firmware
    assert await told(spec) == [
        "firmware.vars: the directory '/absent' does not exist (mkdir -p /absent)"
    ]


# --- nothing that would send people to install a package in vain


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            MachineSpec(machine="microvm", firmware="uefi"),
            'firmware: microvm has no flash for UEFI (machine = "q35")',
        ),
        (
            MachineSpec(arch="riscv64", machine="virt", firmware=Uefi(secure_boot=True)),
            "firmware.secure_boot: there is none for virt on riscv64 (leave it out)",
        ),
        (MachineSpec(firmware=Uefi(code="")), "firmware.code: the path is empty"),
        (MachineSpec(firmware=Uefi(code="/c\0")), "firmware.code: holds a NUL character"),
        (MachineSpec(firmware=Uefi("/c", "/t\0")), "firmware.template: holds a NUL character"),
        (MachineSpec(firmware=Uefi(vars="/v\0")), "firmware.vars: holds a NUL character"),
        (MachineSpec(firmware=Uefi("${nonsense}/c")), "firmware.code: unknown variable"),
        (
            MachineSpec(machine="q36", firmware="uefi"),
            "machine: 'q36' is not a machine type (q35 or microvm)",
        ),
    ],
)
async def test_a_fault_of_the_spec_is_the_only_one(spec: MachineSpec, message: str) -> None:
    (fault,) = await told(spec)
    assert fault.startswith(message)


async def test_a_path_that_could_not_be_filled_in_is_not_sought() -> None:
    """It is not known yet what the firmware's own paths are."""
    spec = MachineSpec(firmware=Uefi("${cache}/c", "${cache}/t"), kernel=Kernel("${nonsense}/k"))
    (fault,) = await told(spec)
    assert fault.startswith("kernel.image: unknown variable ${nonsense}")


async def test_an_old_qemu_has_no_flash_for_riscv(tmp_path: Path) -> None:
    spec = MachineSpec(
        arch="riscv64", machine="virt", firmware=Uefi(tmp_path / "c", tmp_path / "t")
    )
    for path in ("c", "t"):
        (tmp_path / path).write_bytes(bytes(512))
    flash = Flash(code=str(tmp_path / "c"), template=str(tmp_path / "t"))
    assert (await resolve(spec)).facts.flash == flash
    answers(tmp_path, "riscv64", (7, 2, 22))
    assert await told(spec) == [
        "firmware: QEMU 7.2.22 has no flash for the UEFI of riscv64, it came with 8.1 "
        "(use a newer QEMU, or a kernel)"
    ]


async def test_secure_boot_and_smm_at_once() -> None:
    """smm is no fault of the firmware's: that there is none is told too."""
    spec = MachineSpec(machine_options={"smm": False}, firmware=Uefi(secure_boot=True))
    smm, firmware = await told(spec)
    assert smm == "machine_options.smm: Secure Boot needs it (leave it out)"
    assert firmware.startswith("firmware: this host has no UEFI firmware with Secure Boot")
