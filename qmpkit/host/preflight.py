"""Everything that can be known to go wrong before QEMU is started.

QEMU would find most of it too: one fault at a time, in words about its own
options, after it has begun.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import BinaryMissing, Fault
from qmpkit.host.check_devices import check_devices, vsock_lacking
from qmpkit.host.check_files import (
    base_warnings,
    check_disks,
    check_plain_files,
    check_untouched,
    raw_warnings,
)
from qmpkit.host.check_network import check_network
from qmpkit.host.check_resources import check_resources
from qmpkit.host.encrypted import secret_problems, secret_warnings
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.kvm import read_text
from qmpkit.host.layered import layered_problems
from qmpkit.spec.boards import board_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.sizes import format_size

__all__ = ["host_warnings", "memory_warning", "preflight"]

_UID_GID = re.compile(r"\d+:\d+", re.ASCII)


def preflight(spec: MachineSpec, root: Path = Path("/")) -> tuple[Problem, ...]:
    """Every problem of *spec* on this host; blocking, about 0.2 ms when there is none.

    *spec* has its variables expanded.  A disk whose `make` target exists is used
    as it is: its format is checked, its size is not compared, another base is a warning.
    *root* holds the `proc`, `sys` and `dev` that are asked about devices and ports.
    """
    return tuple(_problems(spec, root))


def _problems(spec: MachineSpec, root: Path) -> Iterator[Problem]:
    yield from check_plain_files(spec)
    yield from check_disks(spec)
    yield from secret_problems(spec)
    yield from check_untouched(spec)
    yield from layered_problems(spec)
    yield from check_network(spec, root)
    yield from check_resources(spec, root)
    yield from _check_memory_file(spec)
    if spec.vsock is not None:
        yield from vsock_lacking("vsock", root)
    yield from check_devices(spec, root)
    yield from _check_user(spec)
    yield from _check_launcher(spec)


def _check_memory_file(spec: MachineSpec) -> Iterator[Problem]:
    path = spec.memory.mem_path
    if path and not Path(path).parent.is_dir():
        folder = str(Path(path).parent)
        yield Problem(Fault("memory.mem_path", f"the directory {folder!r} does not exist"))


def _check_user(spec: MachineSpec) -> Iterator[Problem]:
    if spec.run_as is None:
        return
    if not _UID_GID.fullmatch(spec.run_as):
        try:
            pwd.getpwnam(spec.run_as)
        except (KeyError, ValueError):
            hint = f"sudo useradd --system {spec.run_as}"
            yield Problem(Fault("run_as", f"there is no user {spec.run_as!r}", hint))
    if os.geteuid() != 0:
        yield Problem(Fault("run_as", "only root can become another user", "leave it out"))


def _check_launcher(spec: MachineSpec) -> Iterator[Problem]:
    if spec.launcher and shutil.which(spec.launcher[0]) is None:
        error = BinaryMissing(f"the launcher {spec.launcher[0]!r} is not on PATH", "install it")
        yield lacking("launcher[0]", error)


def host_warnings(spec: MachineSpec) -> Iterator[str]:
    """What does not prevent a start, but is to be known; blocking."""
    if (memory := memory_warning(spec)) is not None:
        yield memory
    if (limit := spec.resources.memory_max) is not None and limit < spec.most_memory:
        yield (
            f"resources.memory_max is {format_size(limit)}, less than the guest's "
            f"{format_size(spec.most_memory)}: the kernel may kill QEMU when the guest uses it"
        )
    yield from _table_warnings(spec)
    yield from raw_warnings(spec)
    yield from base_warnings(spec)
    yield from secret_warnings(spec)


_PAGE = 4096
_TABLES = 896  # bytes of a microvm's ACPI tables, of QEMU 10.0, and those of a device
_TABLES_EACH = 64


def _table_warnings(spec: MachineSpec) -> Iterator[str]:
    """A microvm whose tables QEMU will overwrite with the end of its initrd: it hangs in its boot.

    Both are put to the end of its RAM; for the tables is left what the last page has free.
    """
    board, initrd = board_of(spec.machine, spec.arch), spec.kernel and spec.kernel.initrd
    if board is None or board.family != "microvm" or not initrd:
        return
    with suppress(OSError, ValueError):  # which is a fault, and told as one
        size = Path(initrd).stat().st_size
        devices = len(spec.disks) + len(spec.nics) + spec.agent + spec.rng + spec.balloon
        if -size % _PAGE < _TABLES + devices * _TABLES_EACH:
            yield (
                f"kernel.initrd: QEMU puts the end of {initrd!r} over the ACPI tables of a "
                f"microvm with so many devices, and its guest may hang in its boot: let the file "
                f"end early in a page (truncate --size {size + -size % _PAGE + 4} on a copy)"
            )


def memory_warning(spec: MachineSpec, root: Path = Path("/")) -> str | None:
    """A sentence when the guest may get more memory than the host has left; blocking."""
    for line in read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            left = int(line.split()[1]) << 10
            if spec.most_memory > left:
                return (
                    f"the guest may use {format_size(spec.most_memory)} and the host has "
                    f"{left >> 20} MiB left: it may swap, or the kernel may kill QEMU"
                )
    return None
