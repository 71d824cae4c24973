"""Finding a machine again: after our own restart, or when only its monitor was lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import MachineDied, MachineGone, QmpkitError
from qmpkit.machine.keep import Home, WrongMachine, attached
from qmpkit.machine.machine import Machine
from qmpkit.machine.report import ExitCause
from qmpkit.machine.state import State
from qmpkit.operations.hotplug.unplug import plugged_devices
from qmpkit.operations.tune.live import take_place
from qmpkit.process.errors import ProcessStuck, ProcessVanished
from qmpkit.process.escalate import stop_child
from qmpkit.process.identity import Identity, Standing, boot_id
from qmpkit.process.kept import KeptLike
from qmpkit.qmp.errors import MonitorAbsent, MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.spec.argv import TOOLS
from qmpkit.spec.machine import MachineSpec, channels
from qmpkit.supervisor.differences import device_differences, disk_differences
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.ledger import KeptLedger, recover_change
from qmpkit.supervisor.life import Means, attend, used_up
from qmpkit.supervisor.moves.departures import settled
from qmpkit.supervisor.moves.heirs import settle_heir
from qmpkit.supervisor.moves.rest_found import settle_rest
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import Declared, End, Record
from qmpkit.vm import VM

__all__ = ["end_found", "found"]

log = logging.getLogger("qmpkit.supervisor")

LATER_PATIENCE = 30.0
"""Seconds a monitor that has been silent is listened to before the second is tried again."""

_STATUS_FOLLOWS = 5.0

_UNANSWERED = (MonitorAbsent, MonitorSilent, MonitorLost, MonitorGarbled, WrongMachine)

Seen = Callable[[], None]


async def found(kept: Kept, means: Means, seen: Seen) -> End:
    """Find the machine of a record and stay with it to its end, or tell how it has ended.

    *seen* is called as soon as something is known of it.  One whose monitor does not
    answer is waited for; meanwhile it can be declared stopped, which ends it by signals.
    One that becomes another process is followed there.
    """
    await _moves_settled(kept, means, seen)
    end = end_found(kept.record, Standing.GONE, boot_id()) if kept.has_left else None
    while end is None:
        record = kept.record
        if record.identity is None or record.phase == "down":
            return end_found(record, Standing.GONE, boot_id())
        try:
            async with means.ground.adopt(record.identity, kept.home) as child:
                end = await _hold(kept, means, child, seen)
        except ProcessVanished as vanished:
            return end_found(record, vanished.standing, boot_id())
    return end


async def _moves_settled(kept: Kept, means: Means, seen: Seen) -> None:
    """Have it known what has come of a move; a process of it that does not answer is waited for.

    Nobody guesses meanwhile where the guest is.  Declared stopped, all of them are ended.
    """
    record, patient = kept.record, means
    if record.heir is None and record.rest is None and record.leaving is None:
        return
    try:
        async with trio.open_nursery() as guards:
            guards.start_soon(_end_all_without_monitor, kept, means)
            while (error := await _unsettled(kept, patient, seen)) is not None:
                _show(kept, error)
                seen()
                if not isinstance(error, MonitorSilent):  # else it is listened to once more
                    await _one_ends(kept, means)
                patient = attrs.evolve(means, patience=LATER_PATIENCE)
            guards.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_collapsed(group)


async def _unsettled(kept: Kept, means: Means, seen: Seen) -> QmpkitError | None:
    """Why it is not known yet what has come of a move; None when it is, or there was none."""
    try:
        await settle_heir(kept, means, seen)
        await settle_rest(kept, means, seen)
        await settled(kept, means, seen)
    except _UNANSWERED as error:
        return error
    return None


def _processes(kept: Kept) -> Iterator[tuple[Identity, Home]]:
    """The one on record, and the one that it was moving to."""
    record, heir = kept.record, kept.record.heir
    if record.identity is not None:
        yield record.identity, kept.home
    if heir is not None:
        yield heir.identity, Home(Path(heir.sockets), kept.home.logs)


async def _one_ends(kept: Kept, means: Means) -> None:
    """Wait for the end of any process of it that lives."""
    async with trio.open_nursery() as nursery:

        async def watch(identity: Identity, home: Home) -> None:
            with suppress(ProcessVanished):
                async with means.ground.adopt(identity, home) as child:
                    await child.wait()
                    nursery.cancel_scope.cancel()

        for process in _processes(kept):
            nursery.start_soon(watch, *process)


async def _end_all_without_monitor(kept: Kept, means: Means) -> None:
    """End them by signals when it is declared stopped while one of them does not answer."""

    async def end(identity: Identity, home: Home) -> None:
        with suppress(ProcessVanished):
            async with means.ground.adopt(identity, home) as child:
                await _end_without_monitor(kept, means, child)

    async with trio.open_nursery() as nursery:
        for process in _processes(kept):
            nursery.start_soon(end, *process)


def end_found(record: Record, standing: Standing, boot: str) -> End:
    """How a machine has ended whose process is not alive.  Pure but for the time."""
    now, end = time.time(), record.end
    if standing is Standing.REBOOTED or (end and record.phase == "down" and end.boot != boot):
        return End(Mishap.HOST_REBOOT, "the host was rebooted", 0.0, now, boot)
    if end is not None and record.phase in ("ending", "down"):
        return end
    if record.phase in ("starting", "down"):
        why = "its start was interrupted by the end of its supervisor"
        return End(Mishap.INTERRUPTED, why, 0.0, now, boot)
    if record.declared == "stopped":
        return End(ExitCause.HOST_QUIT, "it was stopped on request", 0.0, now, boot)
    why = f"QEMU vanished while nobody looked: {standing.value}"
    return End(ExitCause.CRASHED, why, 0.0, now, boot)


async def _hold(kept: Kept, means: Means, child: KeptLike, seen: Seen) -> End | None:
    """Stay with a process to its end; None when the machine is another one by then."""
    patience = means.patience
    while child.status is None:
        end = await _try(kept, means, child, patience, seen)
        if end is not None or kept.record.identity != child.identity:
            return end
        patience = LATER_PATIENCE
    return _unseen(kept.record, child)


async def _try(
    kept: Kept, means: Means, child: KeptLike, patience: float, seen: Seen
) -> End | None:
    """Connect and attend to it; None when the monitor does not answer, or no more."""
    end = None
    async with trio.open_nursery() as guards:
        guards.start_soon(_end_without_monitor, kept, means, child)
        guards.start_soon(_give_up_at_end, kept, child, guards.cancel_scope)
        try:
            async with attached(
                kept.record.running,
                kept.record.facts,
                kept.record.argv,
                child,
                kept.home,
                patience=patience,
                graces=means.options.graces,
            ) as machine:
                end = await _with_monitor(kept, means, machine, seen)
        except _UNANSWERED as error:
            _show(kept, error)
            seen()
            await _wait_for_change(child, error)
        guards.cancel_scope.cancel()
    return end


async def _with_monitor(kept: Kept, means: Means, machine: Machine, seen: Seen) -> End | None:
    if kept.record.phase == "starting":
        kept.note(phase="up", history=kept.record.history.came_up(time.time()))
        means.journal.jot(kept.record)
    machine.ledger = ledger = KeptLedger(kept, means.journal, means.machines)
    vm = VM(machine, logs=kept.home.logs)
    kept.attach(vm, "adopted", adopted=True)
    try:
        await _compare(kept, vm.state)
        seen()
        await used_up(kept, means, machine)
        died_in = kept.record.change
        await recover_change(kept, ledger, vm)
        await _take_place(kept, vm, None if died_in is None else died_in.spec)
        await _compare_disks(kept, vm, means.patience)
        await _compare_devices(kept, vm, means.patience)
        return await attend(kept, means, vm)
    finally:
        kept.detach()


async def _take_place(kept: Kept, vm: VM, before: MachineSpec | None) -> None:
    """Where its spec says, should its supervisor have died while it was tuned."""
    try:
        await take_place(vm.machine, before=before)
    except (MachineDied, MachineGone, MonitorLost):
        return  # seen by who attends to it
    except QmpkitError as error:
        kept.tell("differs", f"its threads do not run where its spec says: {error}")


_AS_DECLARED: dict[Declared, tuple[State, ...]] = {
    "running": (State.RUNNING, State.SUSPENDED),
    "paused": (State.PAUSED,),
    "stopped": (),
}


async def _compare(kept: Kept, state: State) -> None:
    """Tell of what is not as it was; `attend` makes it as declared where that is possible."""
    if gone := await trio.to_thread.run_sync(_missing, kept):
        kept.tell("differs", f"sockets are gone from {kept.home.sockets}: {', '.join(gone)}")
    if state not in _AS_DECLARED[kept.declared]:
        kept.tell("differs", f"it is declared {kept.declared} and was found {state.value}")


async def _compare_disks(kept: Kept, vm: VM, patience: float) -> None:
    """Tell of disks that are not those of the spec; what they are to be is a person's to say."""
    if not kept.spec.disks:
        return
    with trio.move_on_after(patience) as scope:
        try:
            blocks = await vm.execute("query-block")
        except (MachineDied, MachineGone, MonitorLost):
            return  # seen by who attends to it
        except QmpkitError as error:
            kept.tell("differs", f"its disks are unknown: {error}")
            return
    if scope.cancelled_caught:
        kept.tell("differs", f"its disks are unknown: no answer within {patience:g} s")
        return
    for why in disk_differences(kept.spec, blocks):
        log.error("machine %r: %s", kept.name, why)
        kept.tell("differs", why)


async def _compare_devices(kept: Kept, vm: VM, patience: float) -> None:
    """The same for NICs and other devices; where QEMU does not say, nothing is known."""
    spec = kept.spec
    if not (spec.nics or spec.devices or spec.memory.dimms or spec.cpu.added):
        return
    with trio.move_on_after(patience), suppress(QmpkitError):
        for why in device_differences(kept.spec, await plugged_devices(vm.machine)):
            log.error("machine %r: %s", kept.name, why)
            kept.tell("differs", why)


def _missing(kept: Kept) -> list[str]:
    """The channels whose sockets somebody has removed.  Blocking."""
    names = (*channels(kept.spec), TOOLS)
    return [name for name in names if not kept.home.socket(name).exists()]


def _show(kept: Kept, error: QmpkitError) -> None:
    word = "silent" if isinstance(error, MonitorSilent | MonitorLost) else "unreachable"
    log.warning("machine %r lives and is %s: %s", kept.name, word, error)
    if kept.state != word:
        kept.enter(word, str(error))


async def _wait_for_change(child: KeptLike, error: QmpkitError) -> None:
    """Wait as long as connecting again makes no sense."""
    if isinstance(error, MonitorSilent):
        return  # it is listened to, from now on with more patience
    if isinstance(error, MonitorLost):
        with trio.move_on_after(_STATUS_FOLLOWS):
            await child.wait()
        return
    await child.wait()  # nothing ever comes to a place without a socket


async def _end_without_monitor(kept: Kept, means: Means, child: KeptLike) -> None:
    """End it by signals when it is declared stopped while its monitor does not answer."""
    await kept.until(lambda: kept.declared == "stopped" and kept.state in ("silent", "unreachable"))
    graces = means.options.graces
    try:
        await stop_child(child, term_grace=graces.term, kill_grace=graces.kill)
    except ProcessStuck as stuck:
        kept.refusal = stuck
        kept.tell("refused", str(stuck))
        kept.notify()


async def _give_up_at_end(kept: Kept, child: KeptLike, trying: trio.CancelScope) -> None:
    """End the wait for its monitor when the process has ended."""
    await child.wait()
    if kept.vm is None:  # else whoever attends to it sees the end, and its last words
        trying.cancel()


def _unseen(record: Record, child: KeptLike) -> End:
    """The end of a process that nobody could talk to."""
    uptime = record.identity.age if record.identity else 0.0
    cause, why = ExitCause.CRASHED, f"QEMU vanished while its monitor was silent ({child.status})"
    if record.declared == "stopped":
        cause, why = ExitCause.HOST_QUIT, "it was stopped on request, by a signal"
    return End(cause, why, uptime, time.time(), boot_id())
