"""Making the kept machines of a supervisor into those of a farm, step by step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, QmpkitError, SpecInvalid, cause_of
from qmpkit.farm.folders import made_folders
from qmpkit.farm.leave import of_farm, removed
from qmpkit.farm.outcome import Did, Outcome, Progress, Result, Tell
from qmpkit.farm.preflight import preflight
from qmpkit.farm.saved import read_farm, save_farm
from qmpkit.farm.seeds import seeded, write_seed
from qmpkit.farm.settle import settled
from qmpkit.farm.tuning import tune
from qmpkit.operations.ports import change_forwards
from qmpkit.spec import farm_plan
from qmpkit.spec.farm import Farm, FarmMachine, Flaw
from qmpkit.spec.farm_data import machine_to_dict
from qmpkit.spec.farm_plan import (
    Add,
    ChangeLive,
    Known,
    Plan,
    Remove,
    RestartNeeded,
    Step,
    Unchanged,
)
from qmpkit.spec.network import UserNic
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["plan_up", "scale", "up"]

log = logging.getLogger("qmpkit.farm")

_AT_ONCE = 16
"""Machines that are declared at the same time; how many start, the supervisor says."""

Chosen = Callable[[FarmMachine], bool]


async def plan_up(lab: Supervisor, farm: Farm) -> Plan:
    """What `up` would do, from what the supervisor has; nothing is changed.

    Raises SpecInvalid when names are taken by machines that no farm's file has.
    """
    flaws = await lab.network_flaws()
    _check_names(lab, farm)
    known = {
        name: Known(
            machine_to_dict(machine),
            running=lab.kept[name].tended,
            flaws=flaws.get(name, ()),
            saved=lab.saved_in(name) is not None,
        )
        for name, machine in of_farm(lab).items()
    }
    return farm_plan.plan(farm, known)


async def up(
    lab: Supervisor,
    farm: Farm,
    *,
    restart: bool = False,
    grace: float | None = None,
    tell: Tell = lambda progress: None,
) -> Outcome:
    """Have the machines of *farm* and no others of a farm's file; wait until all have settled.

    Machines that the farm no longer has are stopped (*grace*: seconds to power down,
    default: the supervisor's) and forgotten; new ones are declared running, and so are those
    that are down.  One that runs and whose changes need a restart is left as it is, and
    told; with *restart* it is restarted.  Other changes are made while it runs, and what
    somebody else has removed of its networks is made anew.

    Settled is a machine that runs, and is healthy if it has checks, or that has failed or
    waits for one that has: told in the outcome, and no reason for the others not to go on.
    What can be found out beforehand is, for all machines, before anything is changed: it is
    raised, but for RAM that a machine was saved with and that fits it no more, which is its alone.

    Raises SpecInvalid or HostLacks, in a group when there are several, JournalFailed.
    Cancelled, what was declared stays so; running `up` again goes on from there.
    """
    return await _converge(lab, farm, lambda _: True, restart, grace, tell)


async def scale(
    lab: Supervisor, group: str, count: int, *, tell: Tell = lambda progress: None
) -> Outcome:
    """Have *count* machines of the table *group* of the farm that was declared last.

    As if its file said so, of that table alone.  Raises SpecInvalid without such a table,
    and what `up` does.
    """
    farm = await read_farm(lab.state_dir)
    if farm is None:
        fault = Fault("", "nothing was declared yet", "`qmpkit up farm.toml`")
        raise SpecInvalid([fault], f"farm {lab.name!r}")
    wanted = farm_plan.scale(farm, group, count)
    return await _converge(lab, wanted, lambda it: it.group == group, False, None, tell)


async def _converge(
    lab: Supervisor, farm: Farm, chosen: Chosen, restart: bool, grace: float | None, tell: Tell
) -> Outcome:
    plan = await plan_up(lab, farm)
    known, wanted = of_farm(lab), {machine.name: machine for machine in farm.machines}
    steps = [step for step in plan.steps if chosen(wanted.get(step.name) or known[step.name])]
    starting = list(_to_start(steps, wanted, restart))
    async with made_folders(starting):
        refused = await preflight(lab, starting, _to_stop(steps, restart))
    await save_farm(lab.state_dir, farm)
    work = _Work(lab, wanted, known, refused, restart, grace, tell, len(steps))
    gone = [step.name for step in steps if isinstance(step, Remove)]
    for result in await removed(lab, gone, grace=grace, tell=lambda _: None):
        work.tell(result)
    others = [step for step in steps if not isinstance(step, Remove)]
    limit = trio.CapacityLimiter(_AT_ONCE)
    work.over = {step.name: trio.Event() for step in others}
    async with trio.open_nursery() as nursery:
        for step in others:
            nursery.start_soon(work.declare, step, limit)
    async with trio.open_nursery() as nursery:  # one may wait for any other
        for step in others:
            nursery.start_soon(work.settle, step)
    return Outcome({step.name: work.results[step.name] for step in steps})


def _check_names(lab: Supervisor, farm: Farm) -> None:
    known = of_farm(lab)
    faults = [
        Fault(
            f"machines.{machine.group}",
            f"there is a machine {machine.name!r} in {lab.name!r} that comes from no farm file: a "
            "program keeps it, or another supervisor has sent it",
            f"give it another name, or `qmpkit stop {machine.name}` and `qmpkit rm {machine.name}`"
            ": its disks stay, and `up` uses them",
        )
        for machine in farm.machines
        if machine.name in lab.kept and machine.name not in known
    ]
    if faults:
        raise SpecInvalid(faults, f"farm {lab.name!r}")


def _to_start(
    steps: Iterable[Step], wanted: dict[str, FarmMachine], restart: bool
) -> Iterator[FarmMachine]:
    for step in steps:
        match step:
            case Add() | Unchanged(running=False) | ChangeLive(running=False):
                yield wanted[step.name]
            case RestartNeeded() if restart:
                yield wanted[step.name]


def _to_stop(steps: Iterable[Step], restart: bool) -> Iterator[str]:
    for step in steps:
        if isinstance(step, Remove) or (restart and isinstance(step, RestartNeeded)):
            yield step.name


@attrs.define
class _Work:
    lab: Supervisor
    wanted: dict[str, FarmMachine]
    known: dict[str, FarmMachine]
    refused: dict[str, QmpkitError]  # found out beforehand
    restart: bool
    grace: float | None
    _tell: Tell
    total: int
    results: dict[str, Result] = attrs.field(factory=dict)
    declared: dict[str, Did] = attrs.field(factory=dict)
    over: dict[str, trio.Event] = attrs.field(factory=dict)  # that is to be declared

    def tell(self, result: Result) -> None:
        """One machine is through."""
        self.results[result.name] = result
        self._tell(Progress(result.name, result.did, len(self.results), self.total))

    async def declare(self, step: Step, limit: trio.CapacityLimiter) -> None:
        """One step, and the place where it is caught that it cannot be taken."""
        try:
            await self._those_before(self.wanted[step.name])
            if (why := self.refused.get(step.name)) is not None:
                raise why
            async with limit:
                did = await self._declare(step)
        except QmpkitError as error:
            self.tell(Result(step.name, "failed", cause_of(error)))
        else:
            self.declared[step.name] = did
        finally:
            self.over[step.name].set()

    async def _those_before(self, machine: FarmMachine) -> None:
        """Wait for those that it comes after: where the order is another one now, their old
        place and its new one could make a circle.
        """
        for name in {*machine.after, *machine.requires} & self.over.keys():
            await self.over[name].wait()

    async def settle(self, step: Step) -> None:
        """What has become of a machine that was declared."""
        did = self.declared.get(step.name)
        if did in ("unchanged", "restart-needed"):
            self.tell(Result(step.name, did, _needing(step)))
        elif did is not None:
            result = await settled(self.lab.kept[step.name], did)
            self.tell(attrs.evolve(result, why=result.why or _mended(step)))

    async def _declare(self, step: Step) -> Did:
        match step:
            case Unchanged(running=True):
                return "unchanged"
            case ChangeLive(running=True):
                await self._mend(step.name, step.flaws)
                if step.changes:
                    await self._change(self.wanted[step.name])
                return "changed" if step.changes else "mended"
            case RestartNeeded() if not self.restart:
                await self._mend(step.name, step.flaws)
                return "restart-needed"
            case RestartNeeded():
                await self.lab.declare(step.name, "stopped", powerdown_grace=self.grace)
                await self._start(self.wanted[step.name])
                return "restarted"
        await self._start(self.wanted[step.name])
        return "added" if isinstance(step, Add) else "started"

    async def _mend(self, name: str, flaws: Iterable[Flaw]) -> None:
        if any(flaw.mendable for flaw in flaws):
            await self.lab.mend_networks(name)

    async def _start(self, machine: FarmMachine) -> None:
        await write_seed(self.lab.state_dir, machine, self.known.get(machine.name))
        spec = seeded(self.lab.state_dir, machine)
        await self.lab.ensure(spec, wait=False, **_matters(machine))

    async def _change(self, machine: FarmMachine) -> None:
        """Change what runs, then its record; when either fails, what runs is taken back."""
        kept, old = self.lab.kept[machine.name], self.known[machine.name]
        try:
            await _forward(kept, old, machine)
            await tune(kept, old.spec, machine.spec)
            await self.lab.amend(seeded(self.lab.state_dir, machine), **_matters(machine))
        except QmpkitError:
            try:
                await _forward(kept, machine, old)
                await tune(kept, machine.spec, old.spec)
            except QmpkitError:
                log.exception("machine %r is not as before", kept.name)
            raise


def _matters(machine: FarmMachine) -> dict[str, Any]:
    """What a supervisor is told of a machine besides its spec."""
    return {
        "restart": machine.restart,
        "health": machine.health,
        "after": machine.after,
        "requires": machine.requires,
        "farm": machine,
    }


async def _forward(kept: Kept, old: FarmMachine, new: FarmMachine) -> None:
    """Change the forwards of a machine that runs."""
    for before, after in zip(old.spec.nics, new.spec.nics, strict=True):
        if not (isinstance(before, UserNic) and isinstance(after, UserNic)):
            continue
        if before.forwards == after.forwards:
            continue
        if kept.vm is None:
            fault = Fault("nics", f"its ports cannot be changed: it is {kept.state}")
            raise SpecInvalid([fault], f"machine {kept.name!r}")
        await change_forwards(kept.vm, kept.name, after.id, after.forwards)


def _needing(step: Step) -> str:
    if not isinstance(step, RestartNeeded):
        return ""
    fields = [change.field for change in step.needing]
    lost = [flaw.what for flaw in step.flaws if not flaw.mendable]
    return f"after a restart: {', '.join([*fields, *lost])}"


def _mended(step: Step) -> str:
    return ", ".join(flaw.what for flaw in step.flaws) if isinstance(step, ChangeLive) else ""
