"""A disk with this qmpkit, what it needs of Python, and a QEMU, for a Debian guest to mount.

Nothing is copied into the guest, and nothing is asked of a network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from qmpkit.testing.guests.debian import programs

__all__ = ["LABEL", "make_payload"]

LABEL = "payload"
_DATA = ("/usr/share/seabios", "/usr/share/qemu")
_OF_THE_C_LIBRARY = ("libc", "libm", "libpthread", "libdl", "librt", "libresolv")
_WRAPPER = """\
#!/bin/sh
here=${0%/*}
export QEMU_MODULE_DIR=$here/modules
LD_LIBRARY_PATH=$here/lib exec "$here/bin/qemu-system-x86_64" -L "$here/data" "$@"
"""
_MODULES = Path("/usr/lib/x86_64-linux-gnu/qemu")
_FIRMWARE = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "vgabios-stdvga.bin")


def make_payload(scratch: Path, qemu: str, guest: Path) -> Path:
    """The disk, an ext4 labelled "payload": `site/`, `qemu/`, and kvm-tiny in `cache/`.  Blocking.

    *qemu*: this host's; *guest*: the directory of kvm-tiny.
    """
    tree = scratch / "payload"
    site = tree / "site"
    site.mkdir(parents=True)
    _unpack_wheel(site, scratch)
    for name in _needed("qmpkit", ("cli", "farm")):
        _copy(metadata.distribution(name), site)
    # Without KVM compiling takes longer than running; what is compiled is as old as it is.
    words = ["compileall", "-q", "--invalidation-mode", "unchecked-hash", str(site)]
    _run([sys.executable, "-m", *words])
    _copy_qemu(qemu, tree / "qemu")
    shutil.copytree(guest, tree / "cache" / "guests" / "kvm-tiny")
    size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file())
    disk = scratch / "payload.img"
    blocks = size // 1024 * 3 // 2 + 16 * 1024
    words = ["-q", "-F", "-t", "ext4", "-L", LABEL, "-d", str(tree), str(disk)]
    programs.run(["mke2fs", *words, f"{blocks}k"])
    shutil.rmtree(tree)
    return disk


def _unpack_wheel(site: Path, scratch: Path) -> None:
    root = Path(__file__).parents[2]
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch)], root)
    (wheel,) = scratch.glob("qmpkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()


def _needed(name: str, extras: Iterable[str]) -> set[str]:
    """The distributions that *name* needs, and theirs."""
    found: set[str] = set()
    todo = [(name, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            if need.name == "qmpkit" or need.name in found:
                continue
            found.add(need.name)
            todo += [(need.name, more) for more in ("", *need.extras)]
    return found


def _copy(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)


def _copy_qemu(qemu: str, target: Path) -> None:
    """QEMU's program, its libraries and modules and the firmware of a PC, from this host."""
    for name in ("bin", "data", "lib", "modules"):
        (target / name).mkdir(parents=True)
    shutil.copy(Path(qemu).resolve(), target / "bin" / "qemu-system-x86_64")
    (target / "qemu-system-x86_64").write_text(_WRAPPER)
    (target / "qemu-system-x86_64").chmod(0o755)
    for library in _libraries(qemu):
        if library.name.split(".")[0] not in _OF_THE_C_LIBRARY:
            shutil.copy(library.resolve(), target / "lib" / library.name)
    for module in _MODULES.glob("accel-*-x86_64.so"):  # Debian's QEMU loads TCG from one
        shutil.copy(module, target / "modules")
    for name in _FIRMWARE:
        for folder in map(Path, _DATA):
            if (folder / name).exists():
                shutil.copy((folder / name).resolve(), target / "data" / name)


def _libraries(qemu: str) -> Iterator[Path]:
    for line in _run(["ldd", qemu]).splitlines():
        _, arrow, rest = line.partition(" => ")
        if arrow:
            yield Path(rest.split(" (")[0])


def _run(words: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
