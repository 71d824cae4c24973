"""The few ioctls of /dev/kvm that tell whether KVM really serves, and the TSC's frequency."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["machine_type", "tsc_khz_of", "try_kvm"]

_API_VERSION = 12  # fixed since Linux 2.6.22
_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_CHECK_EXTENSION = 0xAE03
_CREATE_VCPU = 0xAE41
_GET_TSC_KHZ = 0xAEA3
_CAP_ARM_VM_IPA_SIZE = 165


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _owned(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def machine_type(arch: str, ipa_bits: int) -> int:
    """The argument of KVM_CREATE_VM: 0, except on ARM CPUs that cannot do the default 40 bits."""
    return ipa_bits if arch == "aarch64" and 0 < ipa_bits < 40 else 0


def try_kvm(path: str, arch: str) -> None:
    """Open the device, check the API and create a VM (0.7 ms in all); OSError says what failed."""
    with _opened(path) as kvm:
        version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
        if version != _API_VERSION:
            raise OSError(errno.EPROTO, f"KVM API version {version}, expected {_API_VERSION}", path)
        ipa = fcntl.ioctl(kvm, _CHECK_EXTENSION, _CAP_ARM_VM_IPA_SIZE) if arch == "aarch64" else 0
        os.close(fcntl.ioctl(kvm, _CREATE_VM, machine_type(arch, ipa)))


def tsc_khz_of(path: str) -> int | None:
    """What KVM says a new vCPU's TSC counts at, in kHz; None when KVM does not say."""
    try:
        with (
            _opened(path) as kvm,
            _owned(fcntl.ioctl(kvm, _CREATE_VM, 0)) as vm,
            _owned(fcntl.ioctl(vm, _CREATE_VCPU, 0)) as vcpu,
        ):
            return fcntl.ioctl(vcpu, _GET_TSC_KHZ, 0) or None
    except OSError:
        return None
