"""What KVM is, judged over recorded trees."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpkit.host._kvm_device import machine_type
from qmpkit.host.kvm import (
    KvmFacts,
    User,
    cpu_flags,
    host_arch,
    owner_of,
    probe_kvm,
    read_text,
)

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme tsc vmx constant_tsc\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme tsc svm constant_tsc\n"
PLAIN = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme tsc\n"
INSIDE_VM = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme hypervisor\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes\nCPU implementer\t: 0x41\n"

ANNA = User("anna", 1000, in_kvm_group=False)
MEMBER = User("anna", 1000, in_kvm_group=True)
ROOT = User("root", 0, in_kvm_group=False)

Opener = Callable[[str, str], None]


def works(path: str, arch: str) -> None:
    assert path.endswith("/dev/kvm")


def fails(number: int) -> Opener:
    def opener(path: str, arch: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return opener


def tree(root: Path, cpuinfo: str, modules: dict[str, str | None], *, device: bool = True) -> Path:
    """A recorded host: cpuinfo, module → its `nested` parameter, and a stand-in for /dev/kvm."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for name, nested in modules.items():
        parameters = root / "sys/module" / name / "parameters"
        parameters.mkdir(parents=True)
        if nested is not None:
            (parameters / "nested").write_text(nested + "\n")
    (root / "dev").mkdir()
    if device:
        (root / "dev/kvm").touch()
    return root


def judge(root: Path, opener: Opener, arch: str = "x86_64", user: User = ANNA) -> KvmFacts:
    return probe_kvm(root, arch=arch, opener=opener, user=user)


def test_intel_hardware(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, INTEL, {"kvm": None, "kvm_intel": "Y"}), works)
    assert facts == KvmFacts(
        kind="hardware",
        usable=True,
        why="KVM is hardware KVM (VT-x, kvm_intel); /dev/kvm works",
        backend="kvm_intel",
        cpu_flag="vmx",
        device="works",
        nested=True,
        modules=("kvm", "kvm_intel"),
    )


def test_amd_without_nesting(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, AMD, {"kvm": None, "kvm_amd": "0"}), works)
    assert (facts.kind, facts.usable, facts.nested) == ("hardware", True, False)
    assert facts.why == "KVM is hardware KVM (AMD-V, kvm_amd); /dev/kvm works"


def test_flag_alone_is_hardware(tmp_path: Path) -> None:
    """A kernel with KVM built in and no parameters shows no module directory."""
    facts = judge(tree(tmp_path, AMD, {}), works)
    assert (facts.kind, facts.usable, facts.backend) == ("hardware", True, "")


def test_vendor_module_alone_is_hardware(tmp_path: Path) -> None:
    """In some containers /proc/cpuinfo is masked."""
    facts = judge(tree(tmp_path, PLAIN, {"kvm": None, "kvm_intel": "N"}), works)
    assert (facts.kind, facts.backend, facts.nested) == ("hardware", "kvm_intel", False)


def test_arm_asks_only_the_device(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, ARM, {}), works, arch="aarch64")
    assert (facts.kind, facts.usable) == ("hardware", True)
    assert facts.why == "KVM is hardware KVM (aarch64); /dev/kvm works"


def test_arm_without_the_device(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, ARM, {}, device=False), fails(errno.ENOENT), arch="aarch64")
    assert (facts.kind, facts.usable) == ("none", False)
    assert "EL2" in facts.cure


def test_pvm_is_paravirtual(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, INSIDE_VM, {"kvm": None, "kvm_pvm": None}), works)
    assert (facts.kind, facts.usable, facts.backend) == ("paravirtual", True, "kvm_pvm")
    assert facts.why == "KVM is a paravirtual backend (kvm_pvm); /dev/kvm works"
    assert facts.cure == ""


def test_pvm_on_a_cpu_with_vtx_is_still_paravirtual(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, INTEL, {"kvm": None, "kvm_pvm": None}), works)
    assert facts.kind == "paravirtual"


def test_builtin_vendor_module_does_not_hide_pvm(tmp_path: Path) -> None:
    modules: dict[str, str | None] = {"kvm": None, "kvm_pvm": None, "kvm_intel": "Y"}
    assert judge(tree(tmp_path, INSIDE_VM, modules), works).kind == "paravirtual"


def test_unused_pvm_does_not_hide_hardware(tmp_path: Path) -> None:
    modules: dict[str, str | None] = {"kvm": None, "kvm_pvm": None, "kvm_intel": "Y"}
    assert judge(tree(tmp_path, INTEL, modules), works).kind == "hardware"


def test_unknown_backend_is_not_called_hardware(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, INSIDE_VM, {"kvm": None}), works)
    assert (facts.kind, facts.usable, facts.backend) == ("paravirtual", True, "")
    assert "of unknown name" in facts.why


def test_no_device_and_no_flag_inside_a_vm(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, INSIDE_VM, {}, device=False), fails(errno.ENOENT))
    assert (facts.kind, facts.usable, facts.device) == ("none", False, "missing")
    assert facts.why == (
        "/dev/kvm does not exist and the CPU shows neither VT-x (vmx) nor AMD-V (svm)"
    )
    assert facts.cure == "this host is itself a VM: turn on nested virtualisation for it"


def test_no_device_and_no_flag_on_metal(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, PLAIN, {}, device=False), fails(errno.ENOENT))
    assert facts.cure == "turn on VT-x or AMD-V in the firmware set-up"


def test_module_not_loaded(tmp_path: Path) -> None:
    facts = judge(tree(tmp_path, AMD, {"kvm": None}, device=False), fails(errno.ENOENT))
    assert facts.kind == "none"
    assert facts.why == "/dev/kvm does not exist: the CPU has AMD-V but kvm_amd is not loaded"
    assert facts.cure.startswith("sudo modprobe kvm_amd")


def test_container_without_the_device(tmp_path: Path) -> None:
    modules: dict[str, str | None] = {"kvm": None, "kvm_intel": "Y"}
    facts = judge(tree(tmp_path, INTEL, modules, device=False), fails(errno.ENOENT))
    assert facts.kind == "none"
    assert "--device /dev/kvm" in facts.cure


@pytest.mark.parametrize(
    ("user", "mode", "group", "cure"),
    [
        (ANNA, "crw-rw----", "kvm", "sudo usermod --append --groups kvm anna, then log in again"),
        (MEMBER, "crw-rw----", "kvm", "the user is in the group kvm but this session is older: "),
        (ANNA, "crw-------", "root", "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm"),
        (ANNA, "crw-------", "kvm", "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm"),
        (ROOT, "crw-rw----", "kvm", "allow the device in this container (--device /dev/kvm)"),
    ],
)
def test_unreadable_device(tmp_path: Path, user: User, mode: str, group: str, cure: str) -> None:
    root = tree(tmp_path, AMD, {"kvm": None, "kvm_amd": "1"})
    facts = probe_kvm(
        root,
        arch="x86_64",
        opener=fails(errno.EACCES),
        user=user,
        owner=lambda device: (mode, group),
    )
    assert (facts.kind, facts.usable, facts.device) == ("hardware", False, "denied")
    assert facts.why == (f"user {user.name!r} may not open /dev/kvm ({mode}, group {group})")
    assert facts.cure.startswith(cure)


@pytest.mark.parametrize(
    ("number", "why", "cure"),
    [
        (errno.ENODEV, "no KVM module serves it", "sudo modprobe kvm_intel"),
        (errno.ENXIO, "no KVM module serves it", "sudo modprobe kvm_intel"),
        (errno.EBUSY, "something else holds", "stop the other hypervisor"),
        (errno.EIO, "does not create a VM: Input/output error", "dmesg"),
    ],
)
def test_broken_device(tmp_path: Path, number: int, why: str, cure: str) -> None:
    facts = judge(tree(tmp_path, INTEL, {"kvm": None}), fails(number))
    assert (facts.usable, facts.device) == (False, "broken")
    assert why in facts.why
    assert cure in facts.cure


def test_the_device_is_really_opened(tmp_path: Path) -> None:
    """The default opener asks the device: an ordinary file does not answer KVM's ioctl."""
    facts = probe_kvm(tree(tmp_path, INTEL, {"kvm": None}), arch="x86_64", user=ANNA)
    assert (facts.usable, facts.device) == (False, "broken")


def test_owner_of_a_real_file(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o640)
    mode, group = owner_of(device)
    assert mode == "-rw-r-----"
    assert group
    assert owner_of(tmp_path / "absent") == ("mode unknown", "unknown")


@pytest.mark.parametrize(
    ("arch", "bits", "argument"),
    [("x86_64", 0, 0), ("x86_64", 36, 0), ("aarch64", 48, 0), ("aarch64", 36, 36)],
)
def test_machine_type(arch: str, bits: int, argument: int) -> None:
    assert machine_type(arch, bits) == argument


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("i686", "i386")],
)
def test_host_arch(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert host_arch() == name


def test_missing_files_read_as_nothing(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path) == frozenset()
    assert read_text(tmp_path / "absent") == ""
