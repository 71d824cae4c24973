"""Which accelerator a machine gets: a pure decision over what was asked and what was found."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import attrs

from qmpkit.errors import HostLacks, KvmUnavailable
from qmpkit.host.kvm import KvmFacts

__all__ = ["Decision", "decide", "runs_natively"]

_X86 = ("x86_64", "i386")
# Hosts whose KVM also runs a smaller sibling of their own architecture.
_SIBLINGS = {"x86_64": ("i386",)}
# A paravirtual backend does not emulate MSR 0x10a, and QEMU asserts on it when the model has it.
_PARAVIRTUAL_FLAGS = ("-arch-capabilities",)


@attrs.frozen
class Decision:
    """The accelerator, the CPU flags it needs, and a warning when it is not what one would hope."""

    accel: Literal["kvm", "tcg"]
    cpu_flags: tuple[str, ...] = ()
    warning: str | None = None


def runs_natively(guest_arch: str, host_arch: str) -> bool:
    """Whether this host's CPU can run the guest's instructions itself."""
    return guest_arch == host_arch or guest_arch in _SIBLINGS.get(host_arch, ())


def decide(
    requested: Literal["auto", "kvm", "tcg"],
    kvm: KvmFacts,
    *,
    guest_arch: str,
    host_arch: str,
    accelerators: Collection[str] = ("kvm", "tcg"),
) -> Decision:
    """Choose the accelerator; *accelerators* is what the QEMU binary was built with.

    `auto` takes KVM only when it is hardware KVM and usable, else TCG with a
    warning that says why and the cure; a guest of another architecture gets TCG
    without one.  `kvm` takes paravirtual KVM too, and raises `KvmUnavailable`
    rather than fall back.  `HostLacks` when TCG is needed and the binary has none.
    """
    if requested == "kvm":
        return _demand_kvm(kvm, guest_arch, host_arch, accelerators)
    if requested == "tcg":
        return _tcg(accelerators)
    if not runs_natively(guest_arch, host_arch):
        return _tcg(accelerators)
    obstacle = _obstacle(kvm, accelerators)
    if obstacle is None:
        return Decision("kvm")
    why, cure = obstacle
    return _tcg(
        accelerators, f"KVM is not used, the guest runs much slower under TCG: {why} ({cure})"
    )


def _demand_kvm(
    kvm: KvmFacts, guest_arch: str, host_arch: str, accelerators: Collection[str]
) -> Decision:
    if not runs_natively(guest_arch, host_arch):
        raise KvmUnavailable(
            f'accel = "kvm" cannot run a {guest_arch} guest on a {host_arch} host',
            'accel = "auto" or "tcg" emulates it',
        )
    if "kvm" not in accelerators:
        raise KvmUnavailable(*_NOT_BUILT_IN)
    if not kvm.usable:
        raise KvmUnavailable(f'accel = "kvm" was asked for, but {kvm.why}', kvm.cure)
    if kvm.kind == "paravirtual" and guest_arch in _X86:
        return Decision("kvm", _PARAVIRTUAL_FLAGS)
    return Decision("kvm")


_NOT_BUILT_IN = (
    "this QEMU binary was built without KVM",
    "use the distribution's QEMU (Debian: the package qemu-system-…)",
)


def _obstacle(kvm: KvmFacts, accelerators: Collection[str]) -> tuple[str, str] | None:
    """Why `auto` does not take KVM, and the cure; None when nothing stands in the way."""
    if "kvm" not in accelerators:
        return _NOT_BUILT_IN
    if not kvm.usable:
        return kvm.why, kvm.cure
    if kvm.kind != "hardware":
        return (
            f"{kvm.why}, but Linux guests may crawl or fail on such a backend",
            'accel = "kvm" uses it all the same',
        )
    return None


def _tcg(accelerators: Collection[str], warning: str | None = None) -> Decision:
    if "tcg" in accelerators:
        return Decision("tcg", warning=warning)
    raise HostLacks(
        f"this QEMU binary was built without TCG{f'; {warning}' if warning else ''}",
        "use the distribution's QEMU, or make hardware KVM work on this host",
    )
