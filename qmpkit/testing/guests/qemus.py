"""The QEMUs that live tests run on: the distribution's, and one other beside it.

On Debian 12 the other is 10.0 from backports, on Debian 13 it is Debian 12's
7.2.  Its packages are unpacked below the cache directory, never installed.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.errors import HostLacks
from qmpkit.testing.guests import libraries, store
from qmpkit.testing.guests.apt import Apt, AptFailed
from qmpkit.testing.guests.sources import host_codename

__all__ = ["fetch_other_qemu", "other_version", "qemu_binaries"]

_ARCHITECTURES = ("x86_64", "aarch64", "riscv64")
_PACKAGES = (
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-utils",
    "seabios",
    "ipxe-qemu",
    "opensbi",
)
_RISCV_PACKAGES = {"7.2": "qemu-system-misc", "10.0": "qemu-system-riscv"}
_OLD_RELEASE = "bookworm"  # whose QEMU is 7.2


def qemu_binaries(arch: str = "x86_64") -> dict[str, Path]:
    """Every QEMU for guests of *arch* that is here, by version ("7.2", "10.0").

    The distribution's comes first.  Fetches nothing: `fetch_other_qemu` does.  Runs each
    binary once (15 ms each).
    """
    found: dict[str, Path] = {}
    own = shutil.which(_program(arch))
    links = sorted(path for path in cache_dir().glob("qemu-*.*") if path.is_symlink())
    fetched = [link / "bin" / _program(arch) for link in links]
    candidates = [Path(own), *fetched] if own else fetched
    for path in candidates:
        version = _version(path)
        if version:
            found.setdefault(version, path)
    return found


def _program(arch: str) -> str:
    return f"qemu-system-{arch}"


def other_version() -> str:
    """The version that `fetch_other_qemu` fetches on this host; raises HostLacks off Debian."""
    return "10.0" if host_codename() == _OLD_RELEASE else "7.2"


def fetch_other_qemu(
    *, refresh: bool = False, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """The other QEMU's binary for x86_64, with those for aarch64 and riscv64 beside it.

    Its packages (30 MB, those of 7.2 70 MB) are fetched and unpacked when missing.  With
    *refresh* Debian is asked for newer packages.  Safe to call from several processes
    at once; blocks.  Raises HostLacks off Debian or when a binary does not run here,
    AptFailed with what apt said.
    """
    version = other_version()
    link = cache_dir() / f"qemu-{version}"
    link.parent.mkdir(parents=True, exist_ok=True)
    facts = {"recipe": _recipe()}
    with store.locked(link.with_name(f".{link.name}.lock")):
        if refresh or store.current(link).get("recipe") != facts["recipe"]:
            _fetch_now(link, facts, progress)
    return link.resolve() / "bin" / _program("x86_64")


def _fetch_now(link: Path, facts: Mapping[str, str], progress: Callable[[str], None]) -> None:
    host = host_codename()
    if host == _OLD_RELEASE:
        apt = Apt(cache_dir() / "apt" / f"{host}-backports", host, backports=True)
    else:
        apt = Apt(cache_dir() / "apt" / _OLD_RELEASE, _OLD_RELEASE)
    names = [*_PACKAGES, _RISCV_PACKAGES[other_version()]]
    progress("asking Debian's archive")
    with apt.locked():
        apt.update()
        packages = apt.show(names)
        if missing := [name for name in names if name not in packages]:
            raise AptFailed(f"packages {', '.join(missing)} are not in this host's Debian archive")

        def build(scratch: Path) -> None:
            progress(f"fetching {len(packages)} packages")
            apt.unpack(apt.fetch(packages.values()), scratch)
            _make_programs(apt, scratch, link.with_name(f"{link.name}-{store.digest(every)}"))

        versions = {name: package.version for name, package in packages.items()}
        every: dict[str, object] = {**facts, "packages": versions}
        store.publish(link, every, build)


def _make_programs(apt: Apt, tree: Path, final: Path) -> None:
    """Make bin/qemu-system-* in *tree*, which will be renamed to *final*."""
    programs = [tree / "usr/bin" / _program(arch) for arch in _ARCHITECTURES]
    for other in {*(tree / "usr/bin").glob("qemu-system-*")}.difference(programs):
        other.unlink()  # up to thirty more architectures, 15 MB each
    # Beside a program QEMU takes this for "/": else 10.0 reads the host's firmware and modules.
    (tree / "usr/bin/qemu-bundle").symlink_to("../..")
    (tree / "bin").mkdir(exist_ok=True)
    _, missing = libraries.library_closure(programs, [tree, Path("/")])
    if missing:
        _add_libraries(apt, tree, programs)
    for real in programs:
        program = tree / "bin" / real.name
        if missing:
            words = [f"LD_LIBRARY_PATH={final / 'private'}", str(final / "usr/bin" / real.name)]
            # exec: the process that was started is QEMU itself, with the pid its starter knows.
            program.write_text(f'#!/bin/sh\nexec env {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
        else:
            program.symlink_to(f"../usr/bin/{real.name}")


def _add_libraries(apt: Apt, tree: Path, programs: Sequence[Path]) -> None:
    """Copy into tree/private those libraries of QEMU's release that this host does not have."""
    with tempfile.TemporaryDirectory(dir=apt.directory) as folder:
        unpacked = Path(folder)
        closure = apt.closure(["qemu-system-x86", "qemu-system-arm"])
        apt.unpack(apt.fetch(p for p in closure.values() if p.section == "libs"), unpacked)
        found, missing = libraries.library_closure(programs, [tree, Path("/"), unpacked])
        if missing:
            raise HostLacks(f"QEMU needs {', '.join(missing)}", "install these libraries")
        private = tree / "private"
        private.mkdir()
        for name, file in found.items():
            if file.is_relative_to(unpacked):
                shutil.copy2(file, private / Path(name).name)


def _version(path: Path) -> str | None:
    """ "7.2" for QEMU 7.2.22; None for what does not run."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version (\d+\.\d+)", done.stdout)
    return match[1] if match else None


def _recipe() -> str:
    source = resources.files(__package__).joinpath("qemus.py").read_bytes()
    return hashlib.sha256(source).hexdigest()[:16]
