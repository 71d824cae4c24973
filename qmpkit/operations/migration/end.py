"""What a migration asks of the end that it goes to, wherever that is.

`Moving` drives the source itself, and the destination by these few operations alone: `LocalEnd`
has the destination's machine in this program; one of another program does the same by words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

import attrs

from qmpkit._trio import both
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.capabilities import Setting, told_anew
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import known_parameters, parameters_of
from qmpkit.operations.migration.postcopy import Rest
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.storage_there import Door
from qmpkit.operations.migration.ways import Route
from qmpkit.spec.network import Forward

__all__ = ["Able", "End", "Ports", "able_of", "tell"]

Ports = Mapping[str, Sequence[Forward]]
"""The ports of a host that lead into the guest, by NIC."""


@attrs.frozen
class Able:
    """What the QEMU at one end can.

    Its `capabilities`, and whether each is on, and its `parameters`, as they are now (of a QEMU
    of another program the names alone), and the CPUID registers that its guest sees (`words`,
    none where a processor has no such thing, or nobody has asked for them).
    """

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]
    words: Sequence[Mapping[str, Any]] = ()


async def able_of(machine: Machine, *, words: bool = True) -> Able:
    """Ask its QEMU (`query-migrate-capabilities`, `query-migrate-parameters`, `qom-get`).

    Without *words* not for those.
    """
    seen, (told, parameters) = await both(
        lambda: _feature_words(machine, asked=words),
        lambda: both(
            lambda: machine.execute("query-migrate-capabilities"),
            lambda: known_parameters(machine),
        ),
    )
    return Able({line["capability"]: line["state"] for line in told}, parameters, seen)


async def _feature_words(machine: Machine, *, asked: bool) -> Sequence[Mapping[str, Any]]:
    if not asked or machine.spec.arch != "x86_64":
        return ()
    first = (await machine.execute("query-cpus-fast"))[0]["qom-path"]
    of_first = {"path": first, "property": "feature-words"}
    words: list[dict[str, Any]] = await machine.execute("qom-get", of_first)
    return words


async def tell(machine: Machine, setting: Setting, options: MigrationOptions, able: Able) -> None:
    """Have the QEMU at one end, which is *able*, be as wanted."""
    wanted = parameters_of(options, able.parameters)
    parameters = {key: it for key, it in wanted.items() if able.parameters[key] != it}
    capabilities = {"capabilities": told_anew(setting, able.capabilities)}
    await both(
        lambda: machine.execute("migrate-set-capabilities", capabilities),
        lambda: machine.execute("migrate-set-parameters", parameters),
    )


class End(Protocol):
    """A destination; it takes one guest, and is of no more use after a migration that failed.

    Whatever it raises before `run` has come of it leaves the guest with the source.
    `moves`: the disks that go along, for which it has new images, with `collapse` of what is
    in their bases too.  `cables`: the NICs that have a cable of their own there.  `pauses`: it
    has to be asked for something when the guest stands still, before all of it is there.
    """

    moves: tuple[DiskMove, ...]
    collapse: bool
    cables: Collection[str]
    pauses: bool

    def must_wait(self) -> None:
        """Raise NotArrived when it was to be filled before, or has ended."""

    def take(self) -> None:
        """It is filled from now on, once and for all; raises as `must_wait`."""

    def has_ended(self) -> MigrationFailed:
        """The error for its QEMU's end, with what that said last."""

    def is_like(self, source: Machine) -> bool:
        """The same file runs as the same command's QEMU at both ends, so their processors agree."""

    async def able(self, *, words: bool) -> Able:
        """What its QEMU can; *words*: with the registers of its processor."""

    def watched(self) -> AbstractContextManager[None]:
        """The block in which it has a guest come: what happens there is noticed."""

    async def set_up(
        self, setting: Setting, options: MigrationOptions, moves: Sequence[DiskMove]
    ) -> None:
        """Set capabilities and parameters, before anything is on its way.

        *moves*: with the dirty bitmaps that go along.
        """

    def served(self, source: Machine) -> AbstractAsyncContextManager[Door]:
        """The block in which *source* may write to the new images; it knows itself by then."""

    async def alike(self) -> None:
        """The new images are as the old ones, for good: nobody else writes to them any more."""

    def laid(
        self, options: MigrationOptions, source: Machine, *, mapped: bool
    ) -> AbstractAsyncContextManager[Route]:
        """The way from *source* to it, as `ways.laid`."""

    async def load(self, uri: str) -> None:
        """Load what the source has sent until then (`migrate-incoming`)."""

    async def loaded(self) -> None:
        """Wait until it has all of the guest, which stands still there.

        Raises MigrationFailed with its reason, MachineDied or MachineGone.
        """

    async def examine(self) -> None:
        """Look whether the guest that is there can run: MigrationFailed when it is down."""

    async def open_ports(self, ports: Ports) -> None:
        """Have these ports of its host, and no others, lead into the guest; HostLacks.

        The guest stands still by then, and its NICs hear what comes by its cables there.
        """

    async def run(self, *, runs: bool) -> float | None:
        """The point of no return: take the images, and run the guest if it *runs*.

        Gives when it ran, by our `time.monotonic()` (None: not known).  Raises
        MigrationUnknown when nobody knows whether it has; anything else: it has not.
        """

    def arrived(self) -> None:
        """The guest is there, and the source is told to end."""

    def rest(self) -> Rest | None:
        """What it is asked with postcopy beside; None when that is not done there."""

    async def discard(self, *, patience: float) -> str:
        """End it, before the source has the guest again; what it had to say if it had ended, or "".

        Its new images are gone then.

        *patience*: seconds that a QEMU is given to end by itself, and say why.
        """
