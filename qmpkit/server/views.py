"""What the API shows of a machine: plain data, from memory but for what only QEMU knows."""

from __future__ import annotations

import re
from typing import Any

import attrs
import trio

from qmpkit.errors import QmpkitError
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.network import UserNic
from qmpkit.supervisor.events import Happening
from qmpkit.supervisor.kept import Kept

__all__ = ["happening_view", "in_counting_order", "machine_view", "row_view"]

_PATIENCE = 2.0
"""Seconds in which a QEMU has to tell its forwards."""


def in_counting_order(name: str) -> tuple[tuple[int, str], ...]:
    """A key to sort by: web2 comes before web10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part) if part.isdecimal() else 0, part) for part in parts)


def row_view(kept: Kept) -> dict[str, Any]:
    """A machine's line in the list."""
    return {
        **attrs.asdict(kept.row()),
        "name": kept.name,
        "group": None if kept.record.farm is None else kept.record.farm.group,
        "memory": kept.spec.memory.total,
        "cpus": kept.spec.cpu.present,
    }


async def machine_view(kept: Kept) -> dict[str, Any]:
    """All that is known of a machine; secrets of its cloud-init are not among it."""
    record, farm = kept.record, kept.record.farm
    end = None if kept.end is None else {**attrs.asdict(kept.end), "cause": kept.end.cause.value}
    return {
        **row_view(kept),
        "spec": spec_to_dict(kept.spec),
        "restart": attrs.asdict(kept.restart),
        "after": list(record.after),
        "requires": list(record.requires),
        "checks": [str(check) for check in record.health.checks] if record.health else [],
        "history": record.history.to_dict(),
        "end": end,
        "argv": list(record.argv),
        "sockets": str(kept.home.sockets),
        "logs": str(kept.home.logs),
        "consoles": [serial.name for serial in kept.spec.serials],
        "networks": [{"name": join.name, "nic": join.nic, "ip": join.ip} for join in record.joined],
        "users": _users(kept),
        "host_name": None if farm is None or farm.seed is None else farm.seed.hostname,
        "forwards": await _forwards(kept),
    }


def _users(kept: Kept) -> list[str]:
    """The users that its cloud-init makes."""
    farm = kept.record.farm
    if farm is None or farm.seed is None:
        return []
    if farm.seed.user is not None:
        return [farm.seed.user]
    data = farm.seed.user_data
    entries = data.get("users", []) if isinstance(data, dict) else []
    if not isinstance(entries, list):
        return []
    return [str(it["name"]) for it in entries if isinstance(it, dict) and "name" in it]


async def _forwards(kept: Kept) -> list[dict[str, Any]]:
    if kept.vm is None or not any(isinstance(nic, UserNic) for nic in kept.spec.nics):
        return []
    with trio.move_on_after(_PATIENCE):
        try:
            return [attrs.asdict(forward) for forward in await kept.vm.forwards()]
        except QmpkitError:
            return []
    return []


def happening_view(happening: Happening) -> dict[str, Any]:
    """One happening."""
    return attrs.asdict(happening)
