"""GRUB for both firmwares, out of Debian's packages, nothing installed on the host.

BIOS: GRUB's core image, which SeaBIOS reaches through the boot sector.  UEFI:
Debian's signed shim and GRUB, so that Secure Boot accepts them too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import attrs

from qmpkit.testing.guests.apt import Apt, Package
from qmpkit.testing.guests.debian.programs import run

__all__ = ["PACKAGES", "Loaders", "boot_sector", "core_image", "make"]

PACKAGES = ("grub-common", "grub-pc-bin", "grub-efi-amd64-signed", "shim-signed")

_DISK_MODULES = ("biosdisk", "part_gpt", "ext2", "search", "search_fs_uuid")
_MODULES = (*_DISK_MODULES, "normal", "configfile", "linux")
_LIBRARIES = "lib/x86_64-linux-gnu"
_SECTOR = 512

# Where grub-bios-setup writes too: offsets in boot.img and in core.img's first sector.
_BOOT_CORE_SECTOR = 0x5C
_CORE_BLOCKLIST = _SECTOR - 12  # the last of its lists: sector (8 bytes), length, segment

_CONFIGURATION = """\
search --fs-uuid --set=root {uuid}
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
"""


@attrs.frozen
class Loaders:
    """What the two firmwares load.

    `boot` is GRUB's first sector and `core` the rest for a BIOS; `efi` are the
    files of the EFI system partition.
    """

    boot: bytes
    core: bytes
    efi: dict[str, bytes]


def make(apt: Apt, packages: Iterable[Package], uuid: str, work: Path) -> Loaders:
    """GRUB that reads its menu from the file system *uuid*; unpacks *packages* below *work*."""
    tree = work / "grub"
    apt.unpack(apt.fetch(packages), tree)
    configuration = work / "core.cfg"
    configuration.write_text(_CONFIGURATION.format(uuid=uuid))
    modules = tree / "usr/lib/grub/i386-pc"
    core = work / "core.img"
    words = ["-O", "i386-pc", "-d", str(modules), "-p", "/boot/grub"]
    words += ["-c", str(configuration), "-o", str(core), *_MODULES]
    # With its own release's loader and libraries, whatever the host's are.
    program = [str(tree / _LIBRARIES / "ld-linux-x86-64.so.2")]
    program += ["--library-path", f"{tree / _LIBRARIES}:{tree / 'usr' / _LIBRARIES}"]
    run([*program, str(tree / "usr/bin/grub-mkimage"), *words])
    signed = tree / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    efi = {
        "EFI/BOOT/BOOTX64.EFI": (tree / "usr/lib/shim/shimx64.efi.signed").read_bytes(),
        "EFI/BOOT/grubx64.efi": signed.read_bytes(),
        "EFI/debian/grub.cfg": configuration.read_bytes(),  # where the signed GRUB looks
    }
    return Loaders((modules / "boot.img").read_bytes(), core.read_bytes(), efi)


def boot_sector(boot: bytes, first: int) -> bytes:
    """GRUB's *boot* image, told that the core begins at sector *first*."""
    image = bytearray(boot)
    struct.pack_into("<Q", image, _BOOT_CORE_SECTOR, first)
    return bytes(image[:440])  # what follows is the partition table's


def core_image(core: bytes, first: int) -> bytes:
    """GRUB's *core* image, told that its second sector lies at *first* + 1."""
    image = bytearray(core)
    struct.pack_into("<Q", image, _CORE_BLOCKLIST, first + 1)
    return bytes(image)
