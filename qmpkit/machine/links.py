"""The cables of NICs: QEMU's command line has no word for one that is out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from qmpkit.spec.machine import MachineSpec

__all__ = ["set_links"]


class _Linked(Protocol):
    @property
    def spec(self) -> MachineSpec: ...

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any: ...


async def set_links(machine: _Linked, *, also_up: bool = False) -> None:
    """Pull the cables that the spec says are out (`set_link`); *also_up*: put the others in."""
    for nic in machine.spec.nics:
        if also_up or not nic.link:
            await machine.execute("set_link", {"name": nic.id, "up": nic.link})
