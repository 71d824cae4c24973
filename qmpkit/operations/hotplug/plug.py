"""The parts that are added to a machine while it runs: all of them, or none.

`plugging` is one transaction, `change_parts` what all plugs and unplugs of a spec are.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from qmpkit.errors import GuestRefused
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable, Monitor
from qmpkit.operations.hotplug.cables import remove_cable
from qmpkit.operations.hotplug.errors import PlugFailed
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE, is_plugged, plugged_devices, release
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import Undertaking, undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.options import Json
from qmpkit.spec.parts import Part, PartKind, names_of

__all__ = ["Plugging", "free_fdset", "plug_parts", "plugging", "remove_parts", "unplug_parts"]

_ADD: Mapping[PartKind, str] = {
    "object": "object-add",
    "chardev": "chardev-add",
    "node": "blockdev-add",
    "netdev": "netdev_add",
    "device": "device_add",
}
_REMOVE: Mapping[PartKind, tuple[str, str]] = {
    "object": ("object-del", "id"),
    "chardev": ("chardev-remove", "id"),
    "node": ("blockdev-del", "node-name"),
    "netdev": ("netdev_del", "id"),
    "fdset": ("remove-fd", "fdset-id"),
    "fd": ("closefd", "fdname"),
}


class Plugging:
    """What was added so far; `keep()` says that it is all there, and needed."""

    def __init__(self, machine: Monitor) -> None:
        self._machine = machine
        self._added: list[Part] = []

    async def add(self, *parts: Part) -> None:
        """Add parts, each after those that it needs; CommandRefused when QEMU says no."""
        for part in parts:
            await self._do(part, _ADD[part.kind], part.arguments)

    async def hand_over(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor under *name* (`getfd`); the back end that uses it keeps it."""
        await self._do(Part("fd", name), "getfd", {"fdname": name}, fds=[fd])

    async def lend(self, fdset: int, fd: int, file: str) -> None:
        """Give QEMU a descriptor of *file* as `/dev/fdset/<fdset>` (`add-fd`)."""
        # Noted there, for whoever asks which file it is, also in another program.
        words = {"fdset-id": fdset, "opaque": file}
        await self._do(Part("fdset", str(fdset)), "add-fd", words, fds=[fd])

    async def _do(
        self, part: Part, command: str, words: Json | None, *, fds: Sequence[int] = ()
    ) -> None:
        self._added.append(part)  # before: cancelled, the command's outcome is unknown
        try:
            await self._machine.execute(command, words, fds=fds)
        except CommandRefused:
            self._added.pop()  # what has that name is not ours to take away
            raise

    async def confirm(self) -> None:
        """See that the devices are there (`qom-list`): 7.2 has accepted some that are not."""
        there = await plugged_devices(self._machine)
        for part in self._added:
            if part.kind == "device" and part.id not in there:
                raise PlugFailed(self._machine.name, part.id)

    def keep(self) -> None:
        """Nothing is taken away any more."""
        self._added.clear()

    async def _undo(self) -> str:
        """Take back what was added; the device that the guest does not let go of, or nothing."""
        with suppress(*LOST):
            return await remove_parts(self._machine, reversed(self._added))
        return ""


@asynccontextmanager
async def plugging(
    machine: Monitor, *, stuck: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Plugging]:
    """What is added within is taken away again when the block fails or is cancelled.

    A device that the guest does not let go of stays, with all behind it: *stuck* makes it
    what it is to be then, and the error has a note that says so.
    """
    plugged = Plugging(machine)
    try:
        yield plugged
    except BaseException as error:
        with trio.move_on_after(STEP_GRACE, shield=True):
            if device := await plugged._undo():
                error.add_note(f"the guest does not let go of {device!r}: it stays plugged")
                if stuck is not None:
                    with suppress(*LOST):
                        await stuck()
        raise


async def remove_parts(
    machine: Monitor, parts: Iterable[Part], *, grace: float = UNPLUG_GRACE
) -> str:
    """Take parts away, as far as they are there; ends at a device that stays, and names it."""
    for part in parts:
        if part.kind == "device":
            with suppress(GuestRefused):
                await release(machine, part.id, grace=grace)
            if await is_plugged(machine, part.id):
                return part.id
        else:
            with suppress(CommandRefused):
                await remove(machine, part)
    return ""


async def remove(machine: Monitor, part: Part) -> None:
    """Take one part away that is no device; CommandRefused when it is not there, or in use."""
    if part.kind == "netdev" and (part.arguments or {}).get("type", "stream") == "stream":
        await remove_cable(machine, part.id)
        return
    command, key = _REMOVE[part.kind]
    ident = int(part.id) if part.kind == "fdset" else part.id
    await machine.execute(command, {key: ident})


async def plug_parts(
    machine: Changeable,
    what: str,
    spec: MachineSpec,
    parts: Sequence[Part],
    *,
    fds: Mapping[str, int] | None = None,
    last: Callable[[], Awaitable[MachineSpec | None]] | None = None,
) -> None:
    """Add *parts* to the machine, whose spec is *spec* then; all of them or none.

    *what*: in words, for the record.  *fds*: descriptors by the names under which parts use
    them; they stay the caller's.  *last*: what else belongs to it; gives *spec* back with
    what is only known then, or None.  The caller holds `machine.changing`.
    """
    names = (*(f"fd/{name}" for name in fds or {}), *names_of(parts))
    change = Change(what=what, spec=spec, begun=pinned(machine.spec), coming=names)
    async with undertaking(machine, change) as it:

        async def finish() -> None:
            if last is not None and (known := await last()) is not None:
                it.learned(known)

        async def stays() -> None:
            it.done()
            with suppress(CommandRefused):
                await finish()
                it.done()

        async with plugging(machine, stuck=stays) as plugged:
            for name, fd in (fds or {}).items():
                await plugged.hand_over(name, fd)
            await plugged.add(*parts)
            await plugged.confirm()
            await finish()
            plugged.keep()
            it.done()


async def unplug_parts(
    machine: Changeable,
    what: str,
    spec: MachineSpec,
    parts: Sequence[Part],
    *,
    grace: float = UNPLUG_GRACE,
) -> None:
    """Take *parts* away, devices before what is behind them; the machine's spec is *spec* then.

    Raises as `release` does, with nothing changed.  Once the last device is gone, what is
    behind them goes too, also when this is cancelled.  The caller holds `machine.changing`.
    """
    begun = pinned(machine.spec)
    change = Change(what=what, spec=spec, begun=begun, going=names_of(parts))
    devices = [part for part in parts if part.kind == "device"]
    async with undertaking(machine, change) as it:
        try:
            for part in devices:
                await release(machine, part.id, grace=grace)
        finally:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await _go_on(machine, it, devices, parts)


async def _go_on(
    machine: Changeable, it: Undertaking, devices: Sequence[Part], parts: Sequence[Part]
) -> None:
    """Take away what is behind devices that are gone, whatever has ended the wait for them."""
    for part in devices:
        if await is_plugged(machine, part.id):
            return
    await remove_parts(machine, [part for part in parts if part.kind != "device"])
    it.done()


async def free_fdset(machine: Monitor) -> int:
    """A number that no set of descriptors has (`query-fdsets`)."""
    taken = {found["fdset-id"] for found in await machine.execute("query-fdsets")}
    return next(number for number in itertools.count(1) if number not in taken)
