"""The accelerator policy, every row of it."""

from __future__ import annotations

from itertools import product
from typing import Literal, get_args

import pytest

from qmpkit.errors import HostLacks, KvmUnavailable
from qmpkit.host.accel import Decision, decide, runs_natively
from qmpkit.host.kvm import KvmFacts, KvmKind

Requested = Literal["auto", "kvm", "tcg"]

FACTS = {
    (kind, usable): KvmFacts(kind, usable, "the reason", "" if usable else "the cure")
    for kind, usable in product(get_args(KvmKind), (True, False))
    if (kind, usable) != ("none", True)  # nothing there cannot have created a VM
}
BUILDS = (("kvm", "tcg"), ("tcg",), ("kvm",))
GUESTS = ("x86_64", "i386", "aarch64")

ROWS = list(product(get_args(Requested), FACTS, GUESTS, BUILDS))


def expected(
    requested: str, kind: str, usable: bool, guest: str, build: tuple[str, ...]
) -> Decision | type[HostLacks]:
    """The issue's paragraph written a second time, in its own order."""
    native = guest != "aarch64"
    serves = native and usable and "kvm" in build
    if requested == "kvm":
        if not serves:
            return KvmUnavailable
        return Decision("kvm", ("-arch-capabilities",) if kind == "paravirtual" else ())
    if requested == "auto" and serves and kind == "hardware":
        return Decision("kvm")
    if "tcg" not in build:
        return HostLacks
    quiet = requested == "tcg" or not native
    return Decision("tcg", warning=None if quiet else "some")


@pytest.mark.parametrize(("requested", "key", "guest", "build"), ROWS)
def test_every_row(
    requested: Requested, key: tuple[KvmKind, bool], guest: str, build: tuple[str, ...]
) -> None:
    wanted = expected(requested, *key, guest, build)
    if isinstance(wanted, type):
        with pytest.raises(HostLacks) as caught:
            decide(requested, FACTS[key], guest_arch=guest, host_arch="x86_64", accelerators=build)
        assert type(caught.value) is wanted
        assert caught.value.cure
        return
    got = decide(requested, FACTS[key], guest_arch=guest, host_arch="x86_64", accelerators=build)
    assert (got.accel, got.cpu_flags) == (wanted.accel, wanted.cpu_flags)
    assert (got.warning is None) == (wanted.warning is None)


def test_auto_says_why_and_the_cure() -> None:
    facts = KvmFacts("none", False, "/dev/kvm does not exist", "sudo modprobe kvm_amd")
    got = decide("auto", facts, guest_arch="x86_64", host_arch="x86_64")
    assert got.warning == (
        "KVM is not used, the guest runs much slower under TCG: "
        "/dev/kvm does not exist (sudo modprobe kvm_amd)"
    )


def test_auto_names_a_paravirtual_backend() -> None:
    facts = KvmFacts("paravirtual", True, "KVM is a paravirtual backend (kvm_pvm)")
    warning = decide("auto", facts, guest_arch="x86_64", host_arch="x86_64").warning
    assert warning is not None
    assert "kvm_pvm" in warning
    assert 'accel = "kvm" uses it all the same' in warning


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            KvmFacts("none", False, "/dev/kvm does not exist", "sudo modprobe kvm_amd"),
            'accel = "kvm" was asked for, but /dev/kvm does not exist. Cure: sudo modprobe kvm_amd',
        ),
        (
            KvmFacts("hardware", False, "the user may not open it", "join"),
            'accel = "kvm" was asked for, but the user may not open it. Cure: join',
        ),
    ],
)
def test_kvm_that_cannot_be_had(facts: KvmFacts, message: str) -> None:
    with pytest.raises(KvmUnavailable) as caught:
        decide("kvm", facts, guest_arch="x86_64", host_arch="x86_64")
    assert str(caught.value) == message


def test_kvm_for_a_foreign_guest() -> None:
    with pytest.raises(KvmUnavailable, match="cannot run a riscv64 guest on a x86_64 host"):
        decide("kvm", FACTS["hardware", True], guest_arch="riscv64", host_arch="x86_64")


def test_no_x86_flags_for_other_cpus() -> None:
    got = decide("kvm", FACTS["paravirtual", True], guest_arch="ppc64", host_arch="ppc64")
    assert got == Decision("kvm")


def test_siblings() -> None:
    assert runs_natively("i386", "x86_64")
    assert not runs_natively("x86_64", "i386")
    assert not runs_natively("arm", "aarch64")
