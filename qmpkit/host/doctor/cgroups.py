"""Control groups: which version, whether ours can be divided, and what it leaves us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

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
            cure="sudo mount -t cgroup2 none /sys/fs/cgroup; in a container: --cgroupns=private",
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
        cure="" if ours and host.user.uid == 0 else _SYSTEMD,
        facts=facts,
    )


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
        left = _left(host, _MOUNT, groups.get("", "/"), "memory.max", "memory.current")
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        left = _left(host, f"{_MOUNT}/memory", groups.get("memory", "/"), *names)
    return min(left, default=None)


def _left(host: Host, mount: str, path: str, limit: str, used: str) -> list[int]:
    found = []
    place = PurePosixPath("/", path)
    for group in (place, *place.parents):
        folder = f"{mount}{group}".rstrip("/")
        allowed = host.number(f"{folder}/{limit}")
        if allowed is not None and allowed < _UNLIMITED:
            found.append(max(0, allowed - (host.number(f"{folder}/{used}") or 0)))
    return found
