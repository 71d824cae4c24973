"""What differs between the *tiny* guests: where their packages come from and what they have."""

from __future__ import annotations

import attrs

__all__ = ["TINY", "TinyFacts"]

# What a virtual machine of ours can have, and what a test wants to mount.
_MODULES = """
virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_scsi virtio_balloon virtio_rng
virtio_pmem virtio_input vmw_vsock_virtio_transport sd_mod sr_mod nvme evdev qemu_fw_cfg
ext4 isofs vfat nls_ascii nls_cp437 fuse virtiofs overlay loop squashfs
"""


@attrs.frozen(kw_only=True)
class TinyFacts:
    """One architecture's *tiny* guest."""

    name: str
    """Of the guest and its directory."""
    debian: str
    """Debian's name of the architecture."""
    releases: tuple[str, ...]
    """Debian releases, in order of preference: the first that the mirror has whole is taken."""
    kernel: str
    """The package of the newest kernel."""
    console: str
    """The board's serial port."""
    modules: str
    """Their names, with spaces between."""


TINY = {
    # Debian 12 on every host: under TCG, QEMU 7.2 crashes Debian 13's kernel at random.
    "x86_64": TinyFacts(
        name="tiny",
        debian="amd64",
        releases=("bookworm",),
        kernel="linux-image-cloud-amd64",
        console="ttyS0",
        modules=_MODULES + "virtio_mem button pvpanic_pci pvpanic_mmio crc32c_intel",
    ),
    # Not the cloud kernel: it has no driver for the power button of a board without ACPI.
    "aarch64": TinyFacts(
        name="tiny-aarch64",
        debian="arm64",
        releases=("bookworm",),
        kernel="linux-image-arm64",
        console="ttyAMA0",
        modules=_MODULES + "virtio_mem gpio_keys",
    ),
    # Debian has it from 13 on; some mirrors' lists of it do not match their signature.
    "riscv64": TinyFacts(
        name="tiny-riscv64",
        debian="riscv64",
        releases=("trixie", "forky"),
        kernel="linux-image-riscv64",
        console="ttyS0",
        modules=_MODULES,
    ),
}
"""By QEMU's name of the architecture."""
