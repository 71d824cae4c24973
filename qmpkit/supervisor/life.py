"""The life of one kept machine: started or adopted, kept as declared, ended, started again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import attrs
import trio

from qmpkit.errors import (
    GuestRefused,
    LaunchFailed,
    MachineDied,
    MachineGone,
    QmpkitError,
    cause_of,
)
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.images.prepare import MadeImages, prepared_disks
from qmpkit.machine.keep import Ground, Home, KeptStart, begun
from qmpkit.machine.launch import LaunchOptions
from qmpkit.machine.machine import Machine
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.machine.state import State
from qmpkit.operations.tune.live import take_place
from qmpkit.process.cgroup import sweep_groups
from qmpkit.process.identity import boot_id
from qmpkit.process.places import discard, second_of
from qmpkit.spec.resources import AUTO, controllers
from qmpkit.spec.sites import Sites
from qmpkit.supervisor.errors import StartCalledOff
from qmpkit.supervisor.gate import Gate
from qmpkit.supervisor.journal import Journal, Ticket
from qmpkit.supervisor.kept import STARTS, Kept
from qmpkit.supervisor.ledger import KeptLedger, finish_change
from qmpkit.supervisor.moves.arrivals import Arrivals
from qmpkit.supervisor.networks import Networks
from qmpkit.supervisor.policy import History, Mishap, after_end
from qmpkit.supervisor.record import Declared, End
from qmpkit.supervisor.shelf import Shelf
from qmpkit.supervisor.vitality import make_checks, notice_mishaps
from qmpkit.vm import VM

__all__ = ["Means", "attempt", "attend", "comes_again", "started", "used_up"]

log = logging.getLogger("qmpkit.supervisor")

RESUME_GRACE = 5.0
"""Seconds that letting a guest run may take when its supervisor is being left."""

HandOver = Callable[[], Awaitable[None]]


@attrs.frozen
class Means:
    """What the lives of a supervisor's machines share.

    `home`: where a machine that is started has its sockets and logs.  `forget`: takes one off
    the record that another supervisor has.  `patience`: seconds
    that a monitor is given to answer at an adoption.
    """

    ground: Ground
    networks: Networks
    journal: Journal
    machines: Mapping[str, Kept]
    home: Callable[[str], Home]
    forget: Callable[[Kept], Awaitable[None]]
    gate: Gate
    shelf: Shelf
    arrivals: Arrivals
    options: LaunchOptions
    powerdown_grace: float
    patience: float = 2.0


async def started(
    kept: Kept, means: Means, resolution: Resolution | None, hand_over: HandOver | None
) -> End | None:
    """Start the machine and stay with it to its end.

    *hand_over* is called once it outlives us and is as declared, for whoever waits for
    it; when that fails or is cancelled the machine is ended again.  None when its monitor
    has gone and QEMU has not.  Raises what `running` does, and JournalFailed; then
    nothing of it is left.
    """
    kept.note(history=kept.record.history.starting(time.time()))
    kept.enter("queued", STARTS)
    async with AsyncExitStack() as stack:
        async with means.gate.turn(kept, patient=hand_over is None):
            kept.enter("starting", "its turn has come")
            up = await _bring_up(stack, kept, means, resolution)
        # Its turn is over: what is left is for the disk to do, and the next QEMU can start.
        vm = await _put_on_record(kept, means, *up)
        kept.attach(vm, "QEMU is up")
        try:
            await _let_go(kept, means, vm, hand_over)
            return await attend(kept, means, vm)
        finally:
            kept.detach()


async def _let_go(kept: Kept, means: Means, vm: VM, hand_over: HandOver | None) -> None:
    try:
        await used_up(kept, means, vm.machine)
        if kept.declared == "running":
            # Not to be left standing with nobody there to see it.
            with trio.move_on_after(RESUME_GRACE, shield=True):
                await vm.resume()
        if hand_over is not None:
            await hand_over()
    except BaseException:
        with trio.move_on_after(means.options.graces.total, shield=True):
            await vm.quit()
        raise


async def used_up(kept: Kept, means: Means, machine: Machine) -> None:
    """Before its guest runs: the RAM that it goes on with is not to be loaded a second time.

    Its disks go on too, and would not be those of that moment any more.  One that is to be
    stopped keeps it: its guest has not run since, or not yet.
    """
    memory = kept.spec.resume_from
    if memory is None or kept.declared == "stopped":
        return
    folder = means.shelf.folder_of(kept.spec)
    machine.spec = attrs.evolve(machine.spec, resume_from=None)
    kept.note(spec=attrs.evolve(kept.spec, resume_from=None))
    if not await kept.write(means.journal):
        kept.note(spec=attrs.evolve(kept.spec, resume_from=memory))
        assert kept.not_durable is not None
        raise kept.not_durable
    if folder is not None:
        await trio.to_thread.run_sync(discard, folder)


async def _bring_up(
    stack: AsyncExitStack, kept: Kept, means: Means, resolution: Resolution | None
) -> tuple[KeptStart, Machine, Ticket, MadeImages]:
    """Start QEMU; it is ready, and on its way to the record."""
    joined = kept.record.joined
    if kept.entry is not None:
        kept.entry.hurry()  # while all else is made ready
    await means.networks.make(kept.name, joined)
    await means.networks.drop(second_of(kept.name), ())  # it may have been that before
    await finish_change(kept)
    if resolution is None:
        resolution = await resolve(kept.spec)
    for warning in resolution.warnings:
        log.warning("machine %r: %s", kept.name, warning)
    made = await stack.enter_async_context(prepared_disks(resolution.spec))
    kept.home = means.home(kept.name)  # the runtime directory may be another one today
    async with means.networks.plugged(resolution.spec, joined, kept.name) as plugged:
        if plugged.spec is not resolution.spec:
            resolution = attrs.evolve(resolution, spec=plugged.spec)
        # What is declared is safe on disk before it is made true.
        first = trio.lowlevel.checkpoint if kept.entry is None else kept.entry.durable
        starting = means.ground.start(resolution, kept.home, plugged.links, first)
        start = await stack.enter_async_context(starting)
        kept.entry = None
    kept.note(
        phase="starting",
        sockets=str(kept.home.sockets),
        identity=start.child.identity,
        argv=start.argv,
        facts=resolution.facts,
        sites=Sites.of(resolution.spec) if kept.spec.cpu.pin == AUTO else None,
    )
    # Written while QEMU gets ready.  It dies with us until it is on record.
    ticket = means.journal.post(kept.record)
    machine = await stack.enter_async_context(begun(resolution, start, kept.home, means.options))
    await take_place(machine)
    return start, machine, ticket, made


async def _put_on_record(
    kept: Kept,
    means: Means,
    start: KeptStart,
    machine: Machine,
    ticket: Ticket,
    made: MadeImages,
) -> VM:
    """From here on it outlives us."""
    await ticket.durable()
    if not await start.keep():
        report = await machine.wait()
        raise LaunchFailed(kept.name, start.argv, str(report.status), report.stderr_tail)
    # From here to the hand-over there is no checkpoint: nobody is cancelled in between.
    kept.note(phase="up", history=kept.record.history.came_up(time.time()))
    means.journal.jot(kept.record)  # were it lost, an adoption would find out
    made.keep()
    machine.ledger = KeptLedger(kept, means.journal, means.machines)
    return VM(machine, logs=kept.home.logs)


async def attend(kept: Kept, means: Means, vm: VM) -> End | None:
    """Keep a living machine as declared until it ends.

    None when only its monitor has gone, or it is another process now.
    """
    end: End | None = None
    identity = kept.record.identity
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, kept, means, vm)
        nursery.start_soon(_see_off, kept, means, vm)
        nursery.start_soon(make_checks, kept, means.journal, vm)
        nursery.start_soon(notice_mishaps, kept, means.journal, vm)
        nursery.start_soon(_notice_loss, vm.machine, nursery.cancel_scope)
        report = await vm.wait()
        await kept.until(lambda: not kept.is_moving)
        end = _end_of(kept, report)
        nursery.cancel_scope.cancel()
    if kept.record.identity != identity:
        return None
    if end is None:
        kept.enter("silent", "its monitor was lost, and QEMU lives")
    return end


def _end_of(kept: Kept, report: ExitReport) -> End:
    """How it ended: as QEMU tells, unless we ended it for a reason that is on record."""
    known = kept.record.end
    if kept.record.phase == "ending" and known and isinstance(known.cause, Mishap):
        return known
    return End.of(report, boot_id())


_AS_DECLARED = {"running": State.RUNNING, "paused": State.PAUSED}
_AWAKE_OR_ASLEEP = (State.RUNNING, State.SUSPENDED)


async def _obey(kept: Kept, means: Means, vm: VM) -> None:
    """Make each declaration true, also one that is made again."""
    while True:
        number, wanted = kept.declarations, kept.declared
        if vm.state is _AS_DECLARED.get(wanted) and kept.spec.resume_from is None:
            await _declared_again(kept, number)
            continue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_try_to_make_true, kept, means, number, wanted, vm)
            await _declared_again(kept, number)
            if wanted != "stopped":
                # A silent QEMU never does what it was told, and is to be stopped all the same.
                nursery.cancel_scope.cancel()


async def _declared_again(kept: Kept, number: int) -> None:
    await kept.until(lambda: kept.declarations != number)


async def _try_to_make_true(
    kept: Kept, means: Means, number: int, wanted: Declared, vm: VM
) -> None:
    try:
        await used_up(kept, means, vm.machine)
        if await _made_true(wanted, vm, _grace(kept, means)):
            kept.let_run = number
            kept.notify()
    except (MachineGone, MachineDied):
        return  # whoever attends to it sees the end
    except QmpkitError as error:
        log.warning("machine %r cannot be made %s: %s", kept.name, wanted, error)
        kept.refusal = error
        kept.tell("refused", f"it is declared {wanted}: {cause_of(error)}")
        kept.notify()


def _grace(kept: Kept, means: Means) -> float:
    return means.powerdown_grace if kept.grace is None else kept.grace


async def _made_true(wanted: Declared, vm: VM, grace: float) -> bool:
    """Whether its guest was let run."""
    match wanted:
        case "running" if vm.state is State.PAUSED or await _failed_to_write(vm):
            await vm.resume()
            return True
        case "paused" if vm.state in _AWAKE_OR_ASLEEP:
            await vm.pause()
            if vm.state is State.SUSPENDED:
                why = "it sleeps, and this QEMU would not keep it from waking up"
                raise GuestRefused(vm.name, "to be paused", why)
        case "stopped" if grace:
            await vm.shutdown(grace=grace)
        case "stopped":
            await vm.quit()
    return False


async def _failed_to_write(vm: VM) -> bool:
    """Whether QEMU has stopped the guest for its disk's sake, which may have room by now.

    For what else QEMU stops a guest, its policy has the answer.
    """
    if vm.state is not State.FAILED:
        return False
    return bool((await vm.execute("query-status"))["status"] == "io-error")


async def _see_off(kept: Kept, means: Means, vm: VM) -> None:
    """When the guest is down: write down why, then end QEMU, which waits for that."""
    try:
        state = await vm.machine.reached(State.SHUTDOWN, State.PANICKED)
        await kept.until(lambda: not kept.is_moving)
        ended = kept.record.phase == "ending" or vm.report is not None
        if ended or (kept.declared == "stopped" and vm.machine.stop_asked):
            return  # it is being ended, and on record is why; or it is another process
        panicked = state is State.PANICKED
        cause = ExitCause.GUEST_PANIC if panicked else ExitCause.GUEST_SHUTDOWN
        why = "the guest panicked" if panicked else "the guest shut itself down"
        uptime = trio.current_time() - vm.machine.started_at
        end = End(cause, why, uptime, time.time(), boot_id())
        kept.note(phase="ending", end=end)
        await kept.write(means.journal)
        await vm.quit()
    except (MachineGone, MachineDied):
        return
    except QmpkitError:
        log.exception("machine %r could not be ended", kept.name)


async def _notice_loss(machine: Machine, attending: trio.CancelScope) -> None:
    await machine.qmp.wait_lost()
    if await machine.verdict() is None:
        attending.cancel()


async def comes_again(kept: Kept, means: Means, end: End) -> bool:
    """Write the end down with what follows from it, and wait until it is to start again.

    False when it is to stay down.  An end that is on record already has been decided on.
    """
    if kept.record.phase != "down" or kept.record.end != end:
        kept.note(phase="down", identity=None, end=end, history=_after(kept, end))
        entry = means.journal.post(kept.record)
        await trio.to_thread.run_sync(discard, kept.home.sockets)
        if controllers(kept.spec.resources):  # of one that was adopted nobody else removes it
            await trio.to_thread.run_sync(sweep_groups)
        await kept.written(entry)
    history = kept.record.history
    if history.crash_loop is not None and kept.declared != "stopped":
        kept.enter("crash-loop", f"{end.why}; {history.crash_loop}")
    elif history.stays is not None or kept.declared == "stopped":
        failed = end.cause is Mishap.START_FAILED
        _rest(kept, "failed" if failed else State.GONE.value, end.why)
    else:
        return await _wait_for_turn(kept, end)
    return False


def _after(kept: Kept, end: End) -> History:
    asked = kept.declared == "stopped"
    history = kept.record.history
    return after_end(kept.restart, history, end.cause, end.time, random.random(), asked=asked)[1]


async def _wait_for_turn(kept: Kept, end: End) -> bool:
    wait = kept.record.history.left(kept.restart, time.time())
    kept.enter("restarting", f"{end.why}; it starts again in {wait:.1f} s")
    with trio.move_on_after(wait):
        await kept.until(lambda: kept.declared == "stopped")
    if kept.declared == "stopped":
        _rest(kept, State.GONE.value, "it was stopped on request")
        return False
    return True


def _rest(kept: Kept, state: str, why: str) -> None:
    if kept.record.is_saved:
        state, why = "saved", "it goes on where it was when it is started"
    kept.enter(state, why)


async def attempt(kept: Kept, means: Means) -> End | None:
    """Start it once more; a start that fails is an end too."""
    try:
        return await started(kept, means, None, None)
    except StartCalledOff as off:
        return End(ExitCause.HOST_QUIT, str(off), 0.0, time.time(), boot_id())
    except (QmpkitError, OSError) as error:  # of the second kind what may pass: a limit, a disk
        log.warning("machine %r is not up: %s", kept.name, error)  # with QEMU's command
        why = cause_of(error) if isinstance(error, LaunchFailed) else f"it did not start: {error}"
        return End(Mishap.START_FAILED, why, 0.0, time.time(), boot_id())
