"""What a supervisor needs of whoever makes the networks that its machines join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qmpkit.networks.farm_networks import Plugged
from qmpkit.process.places import Places
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.machine import MachineSpec

__all__ = ["Networks"]


class Networks(Protocol):
    """The networks of a farm: what carries them outlives a supervisor, as its machines do.

    A *member* has a place in them for each of its NICs.  It is a machine, by its name; while one
    moves each of its two processes is a member (`who_is_at`), and afterwards the one that it is.
    """

    def open(
        self, places: Places, members: Mapping[str, Sequence[Joined]], *, complete: bool
    ) -> AbstractAsyncContextManager[None]:
        """Find what is there of them; within the block they can be made and are looked after.

        *members*: who is in them by what is on record; what nobody is in is removed, if the
        record is *complete*.
        """

    async def make(self, member: str, joined: Sequence[Joined]) -> None:
        """Have all that it needs to start in its networks; done again, it does nothing.

        For one that runs it makes anew what can be meanwhile.  Raises `HostLacks`; then nothing
        new is left.
        """

    async def look(self, members: Mapping[str, Sequence[Joined]]) -> Mapping[str, tuple[Flaw, ...]]:
        """What is not as it was made, of *members* that run; nothing is changed."""

    def plugged(
        self, spec: MachineSpec, joined: Sequence[Joined], member: str
    ) -> AbstractAsyncContextManager[Plugged]:
        """The spec with its NICs plugged in there, for one start on this host within the block.

        Raises `HostLacks`.
        """

    async def drop(self, member: str, joined: Sequence[Joined]) -> None:
        """It is no more: remove its own part, and networks that nobody is in.

        *joined*: what is on record of it beside what is known here.
        """
