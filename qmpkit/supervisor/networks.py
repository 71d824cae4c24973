"""What a supervisor needs of whoever makes the networks that its machines join."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from qmpkit.errors import HostLacks
from qmpkit.process.places import Places
from qmpkit.spec.farm import Joined
from qmpkit.spec.farm_networks import Nat
from qmpkit.spec.machine import MachineSpec

__all__ = ["Networks", "NoNetworks"]


class Networks(Protocol):
    """The networks of a farm: what carries them outlives a supervisor, as its machines do."""

    def open(self, places: Places) -> AbstractAsyncContextManager[None]:
        """Find what is there of them; within the block they can be made and are looked after."""

    async def make(self, machine: str, joined: Sequence[Joined]) -> None:
        """Have all that a machine needs to start in its networks; done again, it does nothing.

        Raises `HostLacks`; then nothing new is left.
        """

    def wired(self, spec: MachineSpec, joined: Sequence[Joined]) -> MachineSpec:
        """The spec with its NICs plugged in, for one start on this host."""

    async def drop(self, machine: str, joined: Sequence[Joined]) -> None:
        """The machine is forgotten: remove its own part, and networks that nobody is in."""


class NoNetworks:
    """For a supervisor of machines that bring their cables themselves."""

    def open(self, places: Places) -> AbstractAsyncContextManager[None]:
        """Nothing is there."""
        return nullcontext()

    async def make(self, machine: str, joined: Sequence[Joined]) -> None:
        """Only a network that each machine has by itself."""
        if others := [join.name for join in joined if not isinstance(join.network, Nat)]:
            what = f"nobody makes the networks {', '.join(others)} of machine {machine!r}"
            raise HostLacks(what, "give its supervisor networks=…")

    def wired(self, spec: MachineSpec, joined: Sequence[Joined]) -> MachineSpec:
        """As it is."""
        return spec

    async def drop(self, machine: str, joined: Sequence[Joined]) -> None:
        """Nothing was made."""
