"""`qmpkit host`: the host's processors, nodes and huge pages, and who sits where."""

from __future__ import annotations

from typing import Any

import attrs

from qmpkit.cli.exits import Exit
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import print_json
from qmpkit.errors import HostLacks
from qmpkit.host.doctor.words import plural
from qmpkit.host.sitting import Sitting, sittings
from qmpkit.host.topology import HostNode, Topology, topology
from qmpkit.process.cgroup import base_of
from qmpkit.spec.number_list import text_of

__all__ = ["show_host"]


def show_host(*, as_json: bool) -> int:
    """`host`."""
    host, found = topology(), sittings()
    limits = _limits()
    if as_json:
        print_json(
            {**attrs.asdict(host), "limits": limits, "machines": [_plain(it) for it in found]}
        )
        return Exit.OK
    sockets = {processor.socket for processor in host.processors}
    print_line(
        f"{plural(len(sockets), 'socket')}, {plural(len(host.cores), 'core')}, "
        f"{plural(len(host.processors), 'processor')} "
        f"({text_of(processor.number for processor in host.processors)}); "
        f"we may use {text_of(host.allowed)}"
    )
    print_table(
        ("NODE", "PROCESSORS", "MEMORY", "FREE", "HUGE PAGES", "DISTANCES"),
        [_node(node) for node in host.nodes],
        prose=False,
    )
    for line in _others(host, limits):
        print_line(line)
    if found:
        print()
        print_table(("MACHINE", "PID", "VCPUS", "OTHERS"), map(_row, found), prose=False)
    return Exit.OK


def _limits() -> dict[str, Any]:
    try:
        base = base_of()
    except HostLacks as error:
        return {"group": None, "controllers": [], "why": str(error)}
    return {"group": str(base.path), "controllers": list(base.controllers), "why": ""}


def _node(node: HostNode) -> tuple[str, ...]:
    pools = [
        f"{it.free} of {it.total} x {human_size(it.size)}" for it in node.huge_pages if it.total
    ]
    return (
        str(node.number),
        text_of(node.processors),
        human_size(node.memory),
        human_size(node.free),
        ", ".join(pools) or "none",
        " ".join(map(str, node.distances)),
    )


def _others(host: Topology, limits: dict[str, Any]) -> list[str]:
    caches: dict[tuple[int, str], list[int]] = {}
    for cache in host.caches:
        caches.setdefault((cache.level, cache.kind), []).append(cache.size)
    shown = [
        f"L{level}{_KINDS.get(kind, '')} {len(sizes)} x {human_size(sizes[0])}"
        for (level, kind), sizes in sorted(caches.items())
    ]
    merging = {True: "merges equal pages", False: "is off", None: "is not in this kernel"}
    lines = [f"caches: {', '.join(shown)}"] if shown else []
    lines.append(f"KSM {merging[host.ksm]}")
    if limits["group"]:
        controllers = " ".join(limits["controllers"]) or "no controller"
        lines.append(f"limits: control groups in {limits['group']}, with {controllers}")
    else:
        lines.append(f"limits: {limits['why']}")
    return lines


_KINDS = {"Data": "d", "Instruction": "i"}


def _row(sitting: Sitting) -> tuple[str, ...]:
    vcpus = [text_of(thread.allowed) for thread in sitting.vcpus]
    rest = {text_of(it.allowed) for it in sitting.threads if it.vcpu is None}
    shown = vcpus[0] if len(set(vcpus)) == 1 else " ".join(vcpus)
    count = f"{len(vcpus)} on {shown}" if vcpus else "-"
    return sitting.machine or "-", str(sitting.pid), count, " ".join(sorted(rest))


def _plain(sitting: Sitting) -> dict[str, Any]:
    plain: dict[str, Any] = attrs.asdict(sitting)
    return plain
