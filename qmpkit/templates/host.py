"""What a saved state depends on of this host: QEMU, and the processor of guests under KVM."""

from __future__ import annotations

from pathlib import Path

import trio

from qmpkit.host.binary import capabilities_of
from qmpkit.host.capabilities import Stamp
from qmpkit.host.resolve import Resolution
from qmpkit.machine.machine import Machine
from qmpkit.spec.sizes import KIB
from qmpkit.templates.errors import TemplateUnfit
from qmpkit.templates.manifest import Build

__all__ = ["build_of", "memory_left", "refuse_foreign"]


async def build_of(machine: Machine) -> Build:
    """What *machine* runs on."""
    binary = machine.facts.binary
    known = await capabilities_of(await trio.to_thread.run_sync(Stamp.of, Path(binary)))
    cpu = ""
    if machine.facts.accel == "kvm":
        cpu = await trio.to_thread.run_sync(_processor)
    return Build(
        binary=binary,
        version=known.version,
        package=known.package,
        accel=machine.facts.accel,
        cpu=cpu,
    )


async def refuse_foreign(path: Path, saved: Build, here: Resolution) -> None:
    """Raise TemplateUnfit when what *here* stands for is no host for a state of *saved*."""
    found = here.capabilities
    if found.version < saved.version:
        then, now = (".".join(map(str, version)) for version in (saved.version, found.version))
        why = f"QEMU {then} saved it, and {saved.binary} is {now}"
        raise TemplateUnfit(str(path), why, "install that QEMU again, or make it anew")
    if here.facts.accel != saved.accel:
        why = f"its guest ran by {saved.accel}"
        raise TemplateUnfit(str(path), why, "make it anew here")
    if saved.cpu and (cpu := await trio.to_thread.run_sync(_processor)) != saved.cpu:
        why = f"its guest ran on {saved.cpu!r}, and this is {cpu!r}"
        raise TemplateUnfit(str(path), why, "make it anew here")


def _processor() -> str:
    """The name of this host's processor, and a digest of what it can do; blocking."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split("\t:", 1) for line in lines if "\t:" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    return named.get("model name", "a processor without a name")


def memory_left() -> int:
    """Bytes that this host can give without swapping; blocking."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    return 0
