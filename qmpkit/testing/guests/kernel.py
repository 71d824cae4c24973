"""What is inside a kernel image and its modules, read without running anything."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
from elftools.elf.elffile import ELFFile

__all__ = [
    "Module",
    "boot_image",
    "built_in",
    "module_closure",
    "module_content",
    "modules_alias",
    "modules_dep",
    "read_modules",
    "vmlinux",
]

_SETUP_SECTORS = 0x1F1  # bzImage header: sectors of real-mode code after the first
_SIGNATURE = 0x202  # "HdrS"
_PAYLOAD_OFFSET = 0x248  # of the compressed kernel, from the end of the setup code
_PAYLOAD_LENGTH = 0x24C
_LZ4_LEGACY = b"\x02\x21\x4c\x18"

_IMAGE_MAGIC = 0x38  # in the header that arm64's and riscv's kernels share
_IMAGE_MAGICS = (b"ARM\x64", b"RSC\x05")
_GZIP = b"\x1f\x8b"


def vmlinux(image: bytes) -> bytes:
    """The uncompressed ELF kernel inside the bzImage *image*.

    QEMU boots it by PVH, which skips the real-mode code and the guest's own
    unpacking: half a second or more under TCG.  Raises ValueError for anything
    but a bzImage with an LZ4 payload, as Debian's cloud kernel has.
    """
    if image[_SIGNATURE : _SIGNATURE + 4] != b"HdrS":
        raise ValueError("not a bzImage: no HdrS signature")
    setup = (image[_SETUP_SECTORS] + 1) * 512
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    payload = image[setup + offset : setup + offset + length]
    if payload[:4] != _LZ4_LEGACY:
        raise ValueError(f"the kernel's payload is not LZ4 (it begins with {payload[:4].hex()})")
    return _unlz4(payload)


def _unlz4(payload: bytes) -> bytes:
    """Undo the legacy LZ4 frame: blocks of at most 8 MiB, then the kernel's own length."""
    import lz4.block

    position, blocks = 4, list[bytes]()
    # The last four bytes are the uncompressed length, appended by the kernel's build.
    end = len(payload) - 4
    while position < end:
        (size,) = struct.unpack_from("<I", payload, position)
        block = payload[position + 4 : position + 4 + size]
        blocks.append(lz4.block.decompress(block, uncompressed_size=8 << 20))
        position += 4 + size
    elf = b"".join(blocks)
    (expected,) = struct.unpack_from("<I", payload, end)
    if len(elf) != expected:
        raise ValueError(f"the kernel unpacked to {len(elf)} bytes instead of {expected}")
    return elf


def boot_image(kernel: bytes) -> bytes:
    """The uncompressed Image that QEMU starts on aarch64 and riscv64, out of Debian's *kernel*.

    Raises ValueError for anything that does not hold one, plain or as gzip.
    """
    image = gzip.decompress(kernel) if kernel.startswith(_GZIP) else kernel
    if image[_IMAGE_MAGIC : _IMAGE_MAGIC + 4] not in _IMAGE_MAGICS:
        raise ValueError(f"not an Image for aarch64 or riscv64 (it begins with {image[:4].hex()})")
    return image


@attrs.frozen
class Module:
    """A kernel module: its file below the modules directory, uncompressed, and its .modinfo."""

    name: str
    path: str
    depends: tuple[str, ...] = ()
    softdep: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def read_modules(directory: Path) -> dict[str, Module]:
    """Every module file below *directory* by name, its .modinfo not read yet."""
    found = {}
    for path in sorted([*directory.rglob("*.ko"), *directory.rglob("*.ko.xz")]):
        plain = path.relative_to(directory).as_posix().removesuffix(".xz")
        name = _name(plain)
        found[name] = Module(name, plain)
    return found


def built_in(directory: Path) -> frozenset[str]:
    """The names of what could be a module and is part of the kernel itself."""
    return frozenset(map(_name, (directory / "modules.builtin").read_text().split()))


def _name(path: str) -> str:
    return Path(path).stem.replace("-", "_")


def module_content(directory: Path, module: Module) -> bytes:
    """The uncompressed file of *module*."""
    path = directory / module.path
    if path.exists():
        return path.read_bytes()
    return lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes())


def module_closure(
    directory: Path, available: Mapping[str, Module], wanted: Iterable[str]
) -> dict[str, Module]:
    """*wanted* and all they need, dependencies first; raises KeyError for an unknown module."""
    chosen: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in chosen:
            return
        module = _with_modinfo(directory, available[name])
        # A soft dependency may be built in, under any name: take it when it is a module.
        for needed in (*module.depends, *(n for n in module.softdep if n in available)):
            visit(needed)
        chosen[name] = module

    for name in wanted:
        visit(name)
    return chosen


def _with_modinfo(directory: Path, module: Module) -> Module:
    elf = ELFFile(io.BytesIO(module_content(directory, module)))
    section = elf.get_section_by_name(".modinfo")
    if section is None:
        raise ValueError(f"{module.path} is not a kernel module: it has no .modinfo")
    pairs = [item.partition(b"=") for item in section.data().split(b"\0") if item]
    values: dict[str, list[str]] = {}
    for key, _, value in pairs:
        values.setdefault(key.decode(), []).append(value.decode())
    return attrs.evolve(
        module,
        depends=tuple(
            name.replace("-", "_")
            for name in ",".join(values.get("depends", ())).split(",")
            if name
        ),
        softdep=_softdeps(values.get("softdep", ())),
        aliases=tuple(values.get("alias", ())),
    )


def _softdeps(lines: Sequence[str]) -> tuple[str, ...]:
    """Names out of "pre: a b post: c"."""
    words = " ".join(lines).split()
    return tuple(word.replace("-", "_") for word in words if not word.endswith(":"))


def modules_dep(modules: Mapping[str, Module], prefix: str = "") -> str:
    """The text of modules.dep: each file, then all it needs, nearest first."""
    lines = []
    for module in modules.values():
        needed = [prefix + modules[name].path for name in _all_needed(modules, module)]
        lines.append(f"{prefix}{module.path}: {' '.join(needed)}".rstrip())
    return "\n".join(lines) + "\n"


def _all_needed(modules: Mapping[str, Module], module: Module) -> list[str]:
    """Every dependency of *module*, so ordered that loading from the end works."""
    order: list[str] = []
    for name in (*module.depends, *(n for n in module.softdep if n in modules)):
        for needed in (name, *_all_needed(modules, modules[name])):
            if needed in order:
                order.remove(needed)  # needed by something later too: load it earlier
            order.append(needed)
    return order


def modules_alias(modules: Mapping[str, Module]) -> str:
    """The text of modules.alias: which device or request wants which module."""
    lines = [
        f"alias {alias} {module.name}" for module in modules.values() for alias in module.aliases
    ]
    return "\n".join(lines) + "\n"
