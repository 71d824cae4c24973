"""Control groups: which version, whether ours can be divided, and what it leaves us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import attrs

from qmpkit.host.doctor.finding import Finding
from qmpkit.host.doctor.place import Host

__all__ = ["cgroups", "memory_left"]

_MOUNT = "/sys/fs/cgroup"
_WANTED = ("cpu", "memory", "io", "pids")
_SYSTEMD = "systemd-run --user --scope --property=Delegate=yes qmpkit …"
# Version 1 writes "no limit" as a number just below this.
_UNLIMITED = 1 << 60


def cgroups(host: Host) -> Iterator[Finding]:
    """Whether each machine can be given limits of its own."""
    groups = _groups(host)
    unified = host.exists(f"{_MOUNT}/cgroup.controllers")
    if not groups or not (unified or host.names(_MOUNT)):
        yield Finding(
            topic="cgroups",
            name="cgroups",
            verdict="note",
            found="not mounted, or hidden from us",
            lacks=("limits",),
            cure=f"{host.sudo}mount -t cgroup2 none {_MOUNT}; in a container: --cgroupns=private",
            facts={"version": None},
        )
    elif unified:
        yield _unified(host, groups.get("", "/"))
    else:
        yield _version_1(host, groups)


def _groups(host: Host) -> dict[str, str]:
    """Our group in each hierarchy, by controller; version 2's has the name ""."""
    found = {}
    for line in host.read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            found[name] = path
    return found


def _unified(host: Host, path: str) -> Finding:
    folder = f"{_MOUNT}/{path.lstrip('/')}".rstrip("/")
    controllers = host.read(f"{folder}/cgroup.controllers").split()
    missing = [name for name in _WANTED if name not in controllers]
    ours = host.may_use(host.at(f"{folder}/cgroup.procs")) and host.may_use(host.at(folder))
    facts = {"version": 2, "group": path, "controllers": controllers, "delegated": ours}
    found = f"version 2, group {path}, controllers {' '.join(controllers) or 'none'}"
    if ours and not missing:
        return Finding(
            topic="cgroups",
            name="cgroups",
            verdict="ok",
            found=found,
            enough_for="limiting what each machine uses",
            facts=facts,
        )
    why = f"; {', '.join(missing)} not handed down" if missing else ""
    return Finding(
        topic="cgroups",
        name="cgroups",
        verdict="note",
        found=found + why + ("" if ours else "; we may not divide it"),
        lacks=("limits",),
        cure=_cure(host, path, missing, ours=ours),
        facts=facts,
    )


def _cure(host: Host, path: str, missing: Sequence[str], *, ours: bool) -> str:
    if host.container:
        return f"a container that may write to {_MOUNT}"
    if path.startswith("/system.slice/"):
        return "Delegate=yes in the service's unit"
    steps = []
    if missing and "user.slice" in path:
        wanted = " ".join(_WANTED)
        steps.append(f"sudo systemctl edit user@.service, with Delegate={wanted} under [Service]")
    if not ours:
        steps.append(_SYSTEMD)
    return "; ".join(steps)


def _version_1(host: Host, groups: dict[str, str]) -> Finding:
    hybrid = host.exists(f"{_MOUNT}/unified/cgroup.controllers")
    kinds = sorted(name for name in groups if name and "=" not in name)
    return Finding(
        topic="cgroups",
        name="cgroups",
        verdict="note",
        found=f"version 1{' beside version 2 (hybrid)' if hybrid else ''}, "
        f"controllers {' '.join(kinds) or 'none'}",
        lacks=("limits",),
        cure="boot with systemd.unified_cgroup_hierarchy=1 (version 2 alone)",
        facts={"version": 1, "hybrid": hybrid, "controllers": kinds},
    )


def memory_left(host: Host) -> int | None:
    """Bytes that our group and those above it may still use; None without a limit."""
    groups = _groups(host)
    if host.exists(f"{_MOUNT}/cgroup.controllers"):
        left = _left(host, _MOUNT, groups.get("", "/"), _Names())
    else:
        left = _left(host, f"{_MOUNT}/memory", groups.get("memory", "/"), _VERSION_1)
    return min(left, default=None)


@attrs.frozen
class _Names:
    """What the memory controller's files are called."""

    limit: str = "memory.max"
    used: str = "memory.current"
    cache: str = "inactive_file"


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(host: Host, mount: str, path: str, names: _Names) -> list[int]:
    found = []
    place = PurePosixPath("/", path)
    for group in (place, *place.parents):
        folder = f"{mount}{group}".rstrip("/")
        allowed = host.number(f"{folder}/{names.limit}")
        if allowed is not None and allowed < _UNLIMITED:
            used = host.number(f"{folder}/{names.used}") or 0
            # Files read once are counted as ours, and given up when memory gets short.
            used -= _statistic(host, f"{folder}/memory.stat", names.cache)
            found.append(max(0, allowed - used))
    return found


def _statistic(host: Host, path: str, name: str) -> int:
    for line in host.read(path, 8192).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0
