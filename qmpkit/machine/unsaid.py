"""What QEMU's command line has no word for: set before the guest's first instruction."""

from __future__ import annotations

from qmpkit.machine.drives import limit_drives
from qmpkit.machine.links import set_links
from qmpkit.machine.machine import Machine

__all__ = ["set_unsaid"]


async def set_unsaid(machine: Machine) -> None:
    """Bound the drives and pull the cables as the machine's spec says."""
    await limit_drives(machine, machine.spec)
    await set_links(machine)
