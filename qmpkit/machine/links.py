"""The cables of NICs: QEMU's command line has no word for one that is out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.silence import silencer

__all__ = ["hear", "set_links"]


class _Linked(Protocol):
    @property
    def spec(self) -> MachineSpec: ...

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any: ...


async def set_links(machine: _Linked, *, also_up: bool = False) -> None:
    """Pull the cables that the spec says are out (`set_link`); *also_up*: put the others in."""
    for nic in machine.spec.nics:
        if also_up or not nic.link:
            await machine.execute("set_link", {"name": nic.id, "up": nic.link})


async def hear(machine: _Linked, nics: Iterable[str]) -> None:
    """Have NICs hear that were started silent (`object-del`, `chardev-remove`)."""
    for nic in nics:
        await machine.execute("object-del", {"id": silencer(nic)})
        await machine.execute("chardev-remove", {"id": silencer(nic)})
