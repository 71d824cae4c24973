"""The disk: a partition table, loaders for BIOS and UEFI, an ext4 root, made in one sparse file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from qmpkit.testing.guests.debian import loader, tree
from qmpkit.testing.guests.debian.loader import Loaders
from qmpkit.testing.guests.debian.programs import as_owner, run

__all__ = ["LAYOUT", "NAME", "SIZE", "Partition", "assemble", "table"]

NAME = "disk.qcow2"
SIZE = 3 << 30  # bytes the guest sees; cloud-init grows the root where the disk is larger

_SECTOR = 512
_MIB = 1 << 20


@attrs.frozen
class Partition:
    """One partition: where it begins and how long it is, in bytes."""

    name: str
    type: str
    start: int
    size: int


# The root comes last, so that it can grow.  Types: BIOS boot, EFI system, x86-64 root
# of the Discoverable Partitions Specification.
BIOS = Partition("bios", "21686148-6449-6E6F-744E-656564454649", _MIB, _MIB)
ESP = Partition("esp", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 2 * _MIB, 14 * _MIB)
ROOT = Partition("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", 16 * _MIB, SIZE - 17 * _MIB)
LAYOUT = (BIOS, ESP, ROOT)

# metadata_csum_seed, which newer mke2fs turns on, is unknown to Debian 12's GRUB.
_EXT4 = "^metadata_csum_seed"


def table(uuid: str) -> str:
    """The GPT as sfdisk reads it, in sectors; *uuid* names the disk."""
    lines = ["label: gpt", f"label-id: {uuid}"]
    lines += [
        f"start={part.start // _SECTOR}, size={part.size // _SECTOR}, "
        f"type={part.type}, name={part.name}"
        for part in LAYOUT
    ]
    return "\n".join(lines) + "\n"


def assemble(
    archive: Path, boot: Loaders, uuid: str, scratch: Path, progress: Callable[[str], None]
) -> None:
    """Make `disk.qcow2` in *scratch* from the guest's files in *archive* and its loaders."""
    work = archive.parent
    raw = work / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(SIZE)
    progress("making the file systems")
    run(["sfdisk", "--quiet", str(raw)], input=table(uuid))
    _make_root(archive, raw, uuid)
    _write_loaders(raw, boot, _make_esp(boot.efi, work))
    progress("packing the image")
    options = "compression_type=zstd"
    words = ["-q", "-f", "raw", "-O", "qcow2", "-c", "-o", options, str(raw)]
    run(["qemu-img", "convert", *words, str(scratch / NAME)])


def _make_root(archive: Path, raw: Path, uuid: str) -> None:
    root = archive.with_name("root")
    tree.unpack(archive, root)
    options = ["-q", "-F", "-t", "ext4", "-O", _EXT4, "-L", "debian", "-U", uuid, "-d", str(root)]
    # A hole is zeros already: without this the first boot would write the inode tables.
    extended = f"offset={ROOT.start},lazy_itable_init=0,lazy_journal_init=0"
    size = f"{ROOT.size // 1024}k"
    run(as_owner(["mke2fs", *options, "-E", extended, str(raw), size]))
    tree.remove(root)


def _make_esp(files: Mapping[str, bytes], work: Path) -> bytes:
    """The EFI system partition with *files*."""
    folder = work / "esp"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    image = work / "esp.img"
    # FAT16: of this size FAT32 would be too small to be valid.
    run(["mkfs.vfat", "-F", "16", "-n", "ESP", "-C", str(image), str(ESP.size // 1024)])
    run(["mcopy", "-s", "-i", str(image), *map(str, sorted(folder.iterdir())), "::"])
    return image.read_bytes()


def _write_loaders(raw: Path, boot: Loaders, esp: bytes) -> None:
    first = BIOS.start // _SECTOR
    core = loader.core_image(boot.core, first)
    assert len(core) <= BIOS.size, "GRUB fits into its partition"
    places = {0: loader.boot_sector(boot.boot, first), BIOS.start: core, ESP.start: esp}
    with raw.open("r+b") as file:
        for place, data in places.items():
            file.seek(place)
            file.write(data)
