"""The values of `spec.variables.HOST_VARIABLES`: what profiles take from their host.

Each is found out at most once a process, and only when a spec mentions it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.host._kvm_device import tsc_khz_of
from qmpkit.host.kvm import cpu_flags, host_arch, read_text
from qmpkit.spec.variables import HOST_VARIABLES

__all__ = ["NAMES", "host_variables", "read_tsc_khz"]

NAMES = HOST_VARIABLES


def host_variables(used: frozenset[str]) -> dict[str, str | None]:
    """The value of each variable in *used* that qmpkit knows; None: this host has none.

    Blocking, 1 ms the first time `tsc_khz` is used, then nothing.
    """
    values: dict[str, str | None] = {}
    if "tsc_khz" in used:
        values["tsc_khz"] = _tsc_khz()
    if "cache" in used:
        values["cache"] = str(cache_dir())  # not remembered: it follows the environment
    return values


@cache
def _tsc_khz() -> str | None:
    khz = read_tsc_khz()
    return str(khz) if khz else None


def read_tsc_khz(root: Path = Path("/"), arch: str | None = None) -> int | None:
    """The host's time-stamp counter in kHz, asked of KVM, sysfs, then /proc/cpuinfo; else None.

    A guest under TCG reads the host's counter, so this is its frequency too.
    """
    if (arch or host_arch()) not in ("x86_64", "i386"):
        return None
    return tsc_khz_of(str(root / "dev/kvm")) or _from_sysfs(root) or _from_cpuinfo(root)


def _from_sysfs(root: Path) -> int | None:
    word = read_text(root / "sys/devices/system/cpu/cpu0/tsc_freq_khz").strip()
    return int(word) if word.isdigit() else None


def _from_cpuinfo(root: Path) -> int | None:
    """Twice the TSC's MHz stands there as BogoMIPS, when Linux took its delay loop from the TSC.

    It does so whenever the counter is constant.  `cpu MHz` will not do: it is the
    momentary clock on most hosts.
    """
    if "constant_tsc" not in cpu_flags(root):
        return None
    for line in read_text(root / "proc/cpuinfo", 8192).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "bogomips":
            return _khz_of_bogomips(value.strip())
    return None


def _khz_of_bogomips(value: str) -> int | None:
    try:
        return round(float(value) * 500) or None
    except ValueError:
        return None
