"""What KVM is on this host: hardware, paravirtual or none, whether we may use it, and the cure.

Everything is read below a root directory and the device is tried through a
function that can be replaced, so that recorded /proc and /sys trees can be judged.
"""

from __future__ import annotations

import errno
import grp
import os
import platform
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs

from qmpkit.host._kvm_device import try_kvm

__all__ = [
    "KvmFacts",
    "KvmKind",
    "User",
    "cpu_flags",
    "host_arch",
    "kvm_facts",
    "owner_of",
    "probe_kvm",
    "read_text",
]

KvmKind = Literal["hardware", "paravirtual", "none"]
DeviceState = Literal["works", "missing", "denied", "broken"]
Opener = Callable[[str, str], None]

_X86 = ("x86_64", "i386")
_FLAG_NAMES = {"vmx": "VT-x", "svm": "AMD-V"}
_FLAG_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
_ARCH_NAMES = {
    "amd64": "x86_64",
    "i586": "i386",
    "i686": "i386",
    "arm64": "aarch64",
    "armv7l": "arm",
    "armv8l": "arm",
    "ppc64le": "ppc64",
}
# One processor's entry is below 3 KiB.  The file of a 256-core host costs 10 ms to read whole.
_CPUINFO_BYTES = 8192


@attrs.frozen
class KvmFacts:
    """What KVM is here.

    `kind`: `hardware` (VT-x, AMD-V, or a CPU architecture whose KVM is always
    hardware), `paravirtual` (a backend without CPU support, e.g. kvm_pvm), `none`.
    `usable`: a VM was really created.  `why` is a sentence about what was found,
    `cure` one about what would make it usable ("" when it is).
    `backend` names the kernel module ("" unknown), `cpu_flag` is vmx, svm or "".
    `device` is the state of /dev/kvm; `nested` whether guests can use KVM
    themselves (None: unknown).  `modules` are KVM's that the kernel shows, `x86`
    whether the host is one, `hypervisor` whether its CPU says that it is virtual.
    """

    kind: KvmKind
    usable: bool
    why: str
    cure: str = ""
    backend: str = ""
    cpu_flag: str = ""
    device: DeviceState = "missing"
    nested: bool | None = None
    modules: tuple[str, ...] = ()
    x86: bool = True
    hypervisor: bool = False


@attrs.frozen
class User:
    """Who asks for KVM: decides the words of the cure."""

    name: str
    uid: int
    in_kvm_group: bool

    @classmethod
    def current(cls) -> User:
        """The user of this process, and whether the group database lists it in `kvm`."""
        uid = os.geteuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        try:
            members = grp.getgrnam("kvm").gr_mem
        except KeyError:
            members = []
        return cls(name, uid, name in members)


def host_arch() -> str:
    """This host's architecture by QEMU's name (`x86_64`, `aarch64`, …)."""
    machine = platform.machine().lower()
    return _ARCH_NAMES.get(machine, machine)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The first processor's `flags` of /proc/cpuinfo; empty when it has no such line."""
    for line in read_text(root / "proc/cpuinfo", _CPUINFO_BYTES).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def read_text(path: Path, limit: int = 4096) -> str:
    """The start of a small kernel file; "" when it is not there or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


_good_news: dict[tuple[int, ...], KvmFacts] = {}


def kvm_facts() -> KvmFacts:
    """`probe_kvm` of this host, asked again only when /dev/kvm has changed or did not serve.

    Blocking: 1 ms, then 2 µs.
    """
    try:
        found = Path("/dev/kvm").stat()
    except OSError:
        return probe_kvm()
    # Loading another KVM module makes the device anew.
    node = (found.st_ino, found.st_ctime_ns, found.st_mode, found.st_uid, found.st_gid)
    if node in _good_news:
        return _good_news[node]
    facts = probe_kvm()
    if facts.usable:
        _good_news[node] = facts
    return facts


def probe_kvm(
    root: Path = Path("/"),
    *,
    arch: str | None = None,
    opener: Opener = try_kvm,
    user: User | None = None,
    owner: Callable[[Path], tuple[str, str]] | None = None,
) -> KvmFacts:
    """Find out what KVM is here; blocking, about 1 ms, raises nothing.

    *root* holds `proc`, `sys` and `dev`; *opener* is called with the device's
    path and the architecture and raises OSError when KVM does not serve; *owner*
    tells a file's mode and group, by default from the file.
    """
    arch = arch or host_arch()
    device = root / "dev/kvm"
    try:
        opener(str(device), arch)
        failure = None
    except OSError as error:
        failure = error
    found = _Found.read(root, arch, failure)
    if failure is None:
        return found.facts(True, f"{found.describe()}; /dev/kvm works")
    who = user or User.current()
    why, cure = _explain(found, failure, (owner or owner_of)(device), who)
    return found.facts(False, why, cure)


@attrs.frozen
class _Found:
    arch: str
    flag: str
    hypervisor: bool
    modules: frozenset[str]
    device: DeviceState
    nested: bool | None

    @classmethod
    def read(cls, root: Path, arch: str, failure: OSError | None) -> _Found:
        flags = cpu_flags(root) if arch in _X86 else frozenset[str]()
        names = ("kvm", "kvm_intel", "kvm_amd", "kvm_pvm")
        modules = frozenset(name for name in names if (root / "sys/module" / name).is_dir())
        return cls(
            arch=arch,
            flag=next((flag for flag in ("vmx", "svm") if flag in flags), ""),
            hypervisor="hypervisor" in flags,
            modules=modules,
            device=_device_state(failure),
            nested=_nested(root, modules),
        )

    @property
    def kind(self) -> KvmKind:
        if self.device == "missing":
            return "none"
        if self.arch not in _X86:
            return "hardware"
        # A built-in kvm_intel leaves its directory in /sys even where the CPU has no VT-x,
        # so beside kvm_pvm only the CPU's flag counts.
        if "kvm_pvm" in self.modules:
            vendor = bool(self.flag) and _FLAG_MODULES[self.flag] in self.modules
        else:
            vendor = bool(self.flag) or bool(self.modules & {"kvm_intel", "kvm_amd"})
        return "hardware" if vendor else "paravirtual"

    @property
    def backend(self) -> str:
        if self.kind == "paravirtual":
            return "kvm_pvm" if "kvm_pvm" in self.modules else ""
        wanted = _FLAG_MODULES.get(self.flag)
        if wanted in self.modules:
            return wanted or ""
        return next((name for name in ("kvm_intel", "kvm_amd") if name in self.modules), "")

    def describe(self) -> str:
        if self.kind == "paravirtual":
            return f"KVM is a paravirtual backend ({self.backend or 'of unknown name'})"
        names = [name for name in (_FLAG_NAMES.get(self.flag), self.backend) if name]
        return f"KVM is hardware KVM ({', '.join(names) or self.arch})"

    def facts(self, usable: bool, why: str, cure: str = "") -> KvmFacts:
        return KvmFacts(
            kind=self.kind,
            usable=usable,
            why=why,
            cure=cure,
            backend=self.backend,
            cpu_flag=self.flag,
            device=self.device,
            nested=self.nested,
            modules=tuple(sorted(self.modules)),
            x86=self.arch in _X86,
            hypervisor=self.hypervisor,
        )


def _device_state(failure: OSError | None) -> DeviceState:
    if failure is None:
        return "works"
    if failure.errno in (errno.ENOENT, errno.ENOTDIR):
        return "missing"
    return "denied" if failure.errno in (errno.EACCES, errno.EPERM) else "broken"


def _nested(root: Path, modules: frozenset[str]) -> bool | None:
    for name in sorted(modules & {"kvm_intel", "kvm_amd"}):
        word = read_text(root / "sys/module" / name / "parameters/nested").strip()
        if word:
            return word in ("Y", "1")
    return None


def _explain(
    found: _Found, failure: OSError, owner: tuple[str, str], user: User
) -> tuple[str, str]:
    """Why KVM does not serve, and the cure."""
    if found.device == "missing":
        return _explain_missing(found)
    if found.device == "denied":
        return _explain_denied(*owner, user)
    if failure.errno in (errno.ENODEV, errno.ENXIO):
        module = _FLAG_MODULES.get(found.flag, "kvm")
        return "/dev/kvm is there but no KVM module serves it", f"sudo modprobe {module}"
    if failure.errno == errno.EBUSY:
        return (
            "KVM cannot create a VM: something else holds the CPU's virtualisation",
            "stop the other hypervisor (VirtualBox, VMware) on this host",
        )
    reason = failure.strerror or str(failure)
    return f"/dev/kvm does not create a VM: {reason}", "look for KVM's reason in dmesg"


def _explain_missing(found: _Found) -> tuple[str, str]:
    if found.arch not in _X86:
        return (
            "/dev/kvm does not exist",
            "boot a kernel with KVM at the hypervisor level (EL2 on ARM), or, inside a VM, "
            "turn on nested virtualisation for it",
        )
    if not found.flag and not found.modules & {"kvm_intel", "kvm_amd", "kvm_pvm"}:
        why = "/dev/kvm does not exist and the CPU shows neither VT-x (vmx) nor AMD-V (svm)"
        if found.hypervisor:
            return why, "this host is itself a VM: turn on nested virtualisation for it"
        return why, "turn on VT-x or AMD-V in the firmware set-up"
    module = _FLAG_MODULES.get(found.flag, "")
    if module and module not in found.modules:
        name = _FLAG_NAMES[found.flag]
        why = f"/dev/kvm does not exist: the CPU has {name} but {module} is not loaded"
        return why, f"sudo modprobe {module}; if dmesg then says disabled by BIOS, turn it on there"
    return (
        "/dev/kvm does not exist although the kernel's KVM module is loaded",
        "in a container, pass the device in (--device /dev/kvm); otherwise restart udev",
    )


def _explain_denied(mode: str, group: str, user: User) -> tuple[str, str]:
    why = f"user {user.name!r} may not open /dev/kvm ({mode}, group {group})"
    if user.uid == 0:
        return why, "allow the device in this container (--device /dev/kvm)"
    if group != "kvm" or "rw" not in mode[4:6]:
        return why, "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm, then join the group kvm"
    if user.in_kvm_group:
        return why, "the user is in the group kvm but this session is older: log in again"
    return why, f"sudo usermod --append --groups kvm {user.name}, then log in again"


def owner_of(device: Path) -> tuple[str, str]:
    """Its mode as `ls` writes it, and its group's name."""
    try:
        found = device.stat()
    except OSError:
        return "mode unknown", "unknown"
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return stat.filemode(found.st_mode), group
