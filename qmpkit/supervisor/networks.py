"""What a supervisor needs of whoever makes the networks that its machines join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qmpkit.networks.farm_networks import Plugged
from qmpkit.process.places import Places
from qmpkit.spec.farm import Joined
from qmpkit.spec.machine import MachineSpec

__all__ = ["Networks"]


class Networks(Protocol):
    """The networks of a farm: what carries them outlives a supervisor, as its machines do."""

    def open(
        self, places: Places, members: Mapping[str, Sequence[Joined]], *, complete: bool
    ) -> AbstractAsyncContextManager[None]:
        """Find what is there of them; within the block they can be made and are looked after.

        *members*: who is in them by what is on record; what nobody is in is removed, if the
        record is *complete*.
        """

    async def make(self, machine: str, joined: Sequence[Joined]) -> None:
        """Have all that a machine needs to start in its networks; done again, it does nothing.

        Raises `HostLacks`; then nothing new is left.
        """

    def plugged(
        self, spec: MachineSpec, joined: Sequence[Joined]
    ) -> AbstractAsyncContextManager[Plugged]:
        """The spec with its NICs plugged in, for one start on this host within the block.

        Raises `HostLacks`.
        """

    async def drop(self, machine: str, joined: Sequence[Joined]) -> None:
        """The machine is forgotten: remove its own part, and networks that nobody is in."""
