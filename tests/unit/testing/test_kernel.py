from __future__ import annotations

import struct
from pathlib import Path

import lz4.block
import pytest

from qmpkit.testing.guests import kernel
from qmpkit.testing.guests.kernel import Module

BLOCK = 8 << 20


def bzimage(elf: bytes, *, magic: bytes = b"\x02\x21\x4c\x18", claimed: int | None = None) -> bytes:
    """A kernel image with *elf* inside, in LZ4 blocks as the kernel's build makes them."""
    payload = magic
    for start in range(0, len(elf), BLOCK):
        block = lz4.block.compress(elf[start : start + BLOCK], store_size=False)
        payload += struct.pack("<I", len(block)) + block
    payload += struct.pack("<I", len(elf) if claimed is None else claimed)
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + b"trailing"


def test_the_kernel_is_taken_out_of_its_image() -> None:
    elf = b"\x7fELF" + bytes(range(256)) * (9 * 4096)  # more than one block
    assert len(elf) > BLOCK
    assert kernel.vmlinux(bzimage(elf)) == elf


def test_what_is_no_kernel_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no HdrS"):
        kernel.vmlinux(bytes(4096))


def test_another_compression_is_named() -> None:
    with pytest.raises(ValueError, match=r"not LZ4 \(it begins with 1f8b0800\)"):
        kernel.vmlinux(bzimage(b"\x7fELF", magic=b"\x1f\x8b\x08\x00"))


def test_a_short_kernel_is_noticed() -> None:
    with pytest.raises(ValueError, match="unpacked to 4 bytes instead of 5"):
        kernel.vmlinux(bzimage(b"\x7fELF", claimed=5))


def modules(**depends: str) -> dict[str, Module]:
    return {n: Module(n, f"k/{n}.ko", tuple(d.split())) for n, d in depends.items()}


def test_dependencies_are_listed_so_that_loading_from_the_end_works() -> None:
    text = kernel.modules_dep(modules(ring="", virtio="ring", pci="virtio ring", other=""))
    lines = dict(line.split(":") for line in text.splitlines())
    assert lines["k/pci.ko"].split() == ["k/virtio.ko", "k/ring.ko"]
    assert lines["k/other.ko"].split() == []


def test_aliases_name_their_module() -> None:
    module = Module("nic", "k/nic.ko", aliases=("virtio:d1v*", "pci:v1"))
    assert kernel.modules_alias({"nic": module}) == "alias virtio:d1v* nic\nalias pci:v1 nic\n"


def test_a_module_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nothere"):
        kernel.module_closure(tmp_path, {}, ["nothere"])


def test_module_files_are_found_by_the_name_the_kernel_uses(tmp_path: Path) -> None:
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    (tmp_path / "kernel/drivers/virtio-rng.ko").touch()
    assert kernel.read_modules(tmp_path) == {
        "virtio_rng": Module("virtio_rng", "kernel/drivers/virtio-rng.ko")
    }
