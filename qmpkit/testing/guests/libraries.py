"""Which shared libraries a program needs, found by its DT_NEEDED entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

__all__ = ["library_closure", "needed"]

_FOLDERS = ("lib/{arch}-linux-gnu", "usr/lib/{arch}-linux-gnu", "lib64", "lib", "usr/lib")


def needed(program: Path) -> tuple[str, ...]:
    """The sonames *program* asks for, its loader's path first where it has one."""
    with program.open("rb") as file:
        elf = ELFFile(file)
        names = [s.get_interp_name() for s in elf.iter_segments() if isinstance(s, InterpSegment)]
        dynamic = elf.get_section_by_name(".dynamic")
        if isinstance(dynamic, DynamicSection):
            names += [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]
    return tuple(names)


def library_closure(
    programs: Iterable[Path], roots: Sequence[Path], arch: str = "x86_64"
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """What *programs* need, as (path in the guest → file, sonames not found in any of *roots*).

    *arch* is that of the programs, in QEMU's words.  Each root is a tree of unpacked
    packages.  Symbolic links are followed inside their root, so the guest gets each
    library once, under the name asked for.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    queue = list(programs)
    while queue:
        for name in needed(queue.pop()):
            place = _find(name, roots, arch)
            if place is None:
                missing.append(name)
            elif place[0] not in found:
                found[place[0]] = place[1]
                queue.append(place[1])
    return found, tuple(dict.fromkeys(missing))


def _find(name: str, roots: Sequence[Path], arch: str) -> tuple[str, Path] | None:
    if "/" in name:
        return _find_loader(name.lstrip("/"), roots)
    for root in roots:
        for folder in _FOLDERS:
            inside = f"{folder.format(arch=arch)}/{name}"
            file = _resolved(root, inside)
            if file is not None:
                return inside, file
    return None


def _find_loader(name: str, roots: Sequence[Path]) -> tuple[str, Path] | None:
    """It is looked for under the name the kernel will ask for; packages may have it in /usr."""
    for root in roots:
        file = _resolved(root, name) or _resolved(root, f"usr/{name}")
        if file is not None:
            return name, file
    return None


def _resolved(root: Path, inside: str) -> Path | None:
    """The file *inside* names, links taken as the guest would: absolute ones from *root*."""
    path = root / inside
    for _ in range(8):
        if not path.is_symlink():
            return path if path.is_file() else None
        target = path.readlink()
        path = root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
    return None
