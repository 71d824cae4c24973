"""Processors that come while the guest runs, and go where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, GuestRefused, HostLacks, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations.hotplug.mounted import Asked
from qmpkit.operations.hotplug.unplug import PERIPHERAL, is_plugged, release
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.tune.live import take_place
from qmpkit.operations.tune.threads import Tunable
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription
from qmpkit.spec.boards import board_of
from qmpkit.spec.check import validate
from qmpkit.spec.cpu_places import CpuPlace, cpu_id, place_of
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec

__all__ = ["ONLINE_GRACE", "Vcpu", "add_cpus", "list_cpus", "places_of", "remove_cpu"]

ONLINE_GRACE = 60.0
"""Seconds that a guest has to see a processor and bring it up: Linux takes 0.1 s.

Under TCG it takes 1 s, and 15 s for the first of another socket, whose speed it measures.
"""

_OST = "ACPI_DEVICE_OST"


@attrs.frozen(kw_only=True)
class Vcpu:
    """A place for a processor: its `number`, where it is, and what is there.

    `thread`: the kernel's id of the thread that runs it, None of an empty place.  `id`: of one
    that was plugged, and can be removed; empty of those of the start.
    """

    number: int
    socket: int
    core: int
    thread_in_core: int
    id: str = ""
    thread: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether the machine has it."""
        return self.thread is not None


async def list_cpus(machine: Tunable) -> tuple[Vcpu, ...]:
    """See `Cpus.list`."""
    threads = {
        it["qom-path"]: int(it["thread-id"]) for it in await machine.execute("query-cpus-fast")
    }
    found = []
    for number, slot in enumerate(await _slots(machine)):
        path = slot.get("qom-path", "")
        ident = path.removeprefix(f"{PERIPHERAL}/") if path.startswith(PERIPHERAL) else ""
        socket, core, thread = _place(slot)
        found.append(
            Vcpu(
                number=number,
                socket=socket,
                core=core,
                thread_in_core=thread,
                id=ident,
                thread=threads.get(path),
            )
        )
    return tuple(found)


def places_of(spec: MachineSpec) -> tuple[Vcpu, ...]:
    """The places of a machine that is down: where a start would have which processors.  Pure."""
    found = []
    for number in range(spec.cpu.maxcpus or spec.cpu.cpus):
        socket, core, thread = place_of(spec.cpu, number)
        ident = cpu_id(number) if number in spec.cpu.added else ""
        found.append(Vcpu(number=number, socket=socket, core=core, thread_in_core=thread, id=ident))
    return tuple(found)


async def _slots(machine: Tunable) -> list[Mapping[str, Any]]:
    """QEMU's places for processors by their numbers; it tells them the other way round."""
    found = await machine.execute("query-hotpluggable-cpus")
    return sorted(found, key=lambda it: (it["props"].get("socket-id", 0), _within(it)))


def _within(slot: Mapping[str, Any]) -> tuple[int, ...]:
    names = ("die-id", "cluster-id", "module-id", "core-id", "thread-id")
    return tuple(slot["props"].get(name, 0) for name in names)


def _place(slot: Mapping[str, Any]) -> CpuPlace:
    names = ("socket-id", "core-id", "thread-id")
    return CpuPlace(*(slot["props"].get(name, 0) for name in names))


async def add_cpus(
    machine: Tunable,
    count: int,
    where: Mapping[str, int],
    agent: Callable[[], Asked] | None,
    grace: float,
) -> tuple[Vcpu, ...]:
    """See `Cpus.add`; *agent*: of a guest that is to bring them up."""
    async with machine.changing:
        asked = agent() if agent is not None else None
        if asked is not None:
            await asked.execute("guest-ping")  # AgentSilent before anything is done
        chosen = await _chosen(machine, count, where)
        with machine.subscribe(_OST) as events:
            for number, slot in chosen:
                await _plug(machine, number, slot)
            await take_place(machine)
            ids = [cpu_id(number) for number, _ in chosen]
            if asked is not None:
                await _bring_up(machine, asked, events, ids, grace)
        by_number = {it.number: it for it in await list_cpus(machine)}
        return tuple(by_number[number] for number, _ in chosen)


async def _chosen(
    machine: Tunable, count: int, where: Mapping[str, int]
) -> list[tuple[int, Mapping[str, Any]]]:
    """The lowest empty places, of those at *where*; SpecInvalid when there are not enough."""
    board = board_of(machine.spec.machine, machine.spec.arch)
    faults = []
    if board is not None and not board.cpu_hotplug:
        faults = [Fault("cpu", f"{board.name} has no processor hotplug")]
    else:
        faults = [*_senseless(count, where)]
    if faults:
        raise SpecInvalid(faults, f"machine {machine.name!r}")
    slots = list(enumerate(await _slots(machine)))
    free = [it for it in slots if "qom-path" not in it[1] and _is_at(_place(it[1]), where)]
    if len(free) < count:
        raise SpecInvalid([_no_place(machine.spec, len(free), where)], f"machine {machine.name!r}")
    chosen = free[:count]
    for number, slot in chosen:
        if place_of(machine.spec.cpu, number) != _place(slot):
            message = f"processor {number} is not where a restart would have it"
            fault = Fault("cpu", message, "say sockets, cores and threads in the spec")
            raise SpecInvalid([fault], f"machine {machine.name!r}")
    return chosen


def _senseless(count: object, where: Mapping[str, object]) -> Iterator[Fault]:
    """Of words that are no numbers, too: they come from programs."""
    if type(count) is not int or count < 1:
        yield Fault("cpus", f"at least 1 is added, not {count!r}", "a whole number")
    for name, number in where.items():
        if type(number) is not int:
            yield Fault(name, f"cannot be {number!r}", "a whole number, from 0 on")


def _is_at(place: CpuPlace, where: Mapping[str, int]) -> bool:
    return all(getattr(place, name) == value for name, value in where.items())


def _no_place(spec: MachineSpec, left: int, where: Mapping[str, int]) -> Fault:
    if where:
        words = ", ".join(f"{name} {number}" for name, number in where.items())
        return Fault("cpu", f"no place for a processor is empty at {words}", "vm.cpus.list()")
    limit = spec.cpu.maxcpus or spec.cpu.cpus
    message = f"leaves {left} empty place{'' if left == 1 else 's'}"
    return Fault("cpu.maxcpus", message, f"start the machine with more: maxcpus = {2 * limit}")


async def _plug(machine: Tunable, number: int, slot: Mapping[str, Any]) -> None:
    """Add one; whatever ends this, `machine.spec` has it if QEMU has."""
    old = pinned(machine.spec)
    added = sorted({*old.cpu.added, number})
    new = attrs.evolve(old, cpu=attrs.evolve(old.cpu, added=added))
    validate(new)
    ident = cpu_id(number)
    change = Change(
        what=f"add processor {number}", spec=new, begun=old, coming=(f"device/{ident}",)
    )
    async with undertaking(machine, change) as it:
        try:
            await machine.execute(
                "device_add", {"driver": slot["type"], "id": ident, **slot["props"]}
            )
            it.done()
        except CommandRefused:
            raise
        except BaseException:
            # Not taken back: the guest may use it by now, and under TCG QEMU would die of it.
            with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
                if await is_plugged(machine, ident):
                    it.done()
            raise


async def _bring_up(
    machine: Tunable, agent: Asked, events: Subscription, ids: Sequence[str], grace: float
) -> None:
    """Have the guest use them (`guest-set-vcpus`), once its kernel has seen them."""
    with trio.move_on_after(grace):
        await _seen(events, set(ids))
        known = await agent.execute("guest-get-vcpus")
        offline = [
            {"logical-id": it["logical-id"], "online": True} for it in known if not it["online"]
        ]
        if offline and await agent.execute("guest-set-vcpus", {"vcpus": offline}) != len(offline):
            raise GuestRefused(machine.name, "to bring its processors up", "it did not say why")
        return
    why = f"it did not within {grace:g} s; they are plugged, and offline"
    raise GuestRefused(machine.name, f"to bring {', '.join(ids)} up", why)


async def _seen(events: Subscription, waited_for: set[str]) -> None:
    """Wait until the guest's kernel has answered for each of them (`_OST`)."""
    while waited_for:
        info = (await events.next()).data["info"]
        if info["status"] == 0:
            waited_for.discard(info.get("device", ""))


async def remove_cpu(machine: Tunable, ident: str, grace: float, *, unsafe: bool) -> None:
    """See `Cpus.remove`."""
    async with machine.changing:
        old = pinned(machine.spec)
        by_id = {cpu_id(number): number for number in old.cpu.added}
        if ident not in by_id:
            hint = f"one of {', '.join(by_id)}" if by_id else "those of the start stay"
            fault = Fault("cpu", f"it has no processor {ident!r} that was added", hint)
            raise SpecInvalid([fault], f"machine {machine.name!r}")
        if not unsafe and not (await machine.execute("query-kvm"))["enabled"]:
            what = f"machine {machine.name!r} runs under TCG, where QEMU dies of a CPU that goes"
            raise HostLacks(what, "KVM; or unsafe=True, for a QEMU that may die")
        added = [number for number in old.cpu.added if number != by_id[ident]]
        new = attrs.evolve(old, cpu=attrs.evolve(old.cpu, added=added))
        change = Change(
            what=f"remove processor {by_id[ident]}",
            spec=new,
            begun=old,
            going=(f"device/{ident}",),
        )
        path = f"{PERIPHERAL}/{ident}/lapic"
        async with undertaking(machine, change) as it:
            try:
                await release(machine, ident, path=path, grace=grace)
            finally:
                with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
                    if not await is_plugged(machine, ident):
                        it.done()
