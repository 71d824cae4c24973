"""Pause, resume, reset, power down: what moves a machine from state to state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from qmpkit.errors import GuestRefused, MachineGone
from qmpkit.machine.machine import Machine, check_grace
from qmpkit.machine.report import ExitReport
from qmpkit.machine.state import State
from qmpkit.qmp.errors import MonitorLost
from qmpkit.spec.boards import board_of

__all__ = ["pause", "paused", "powerdown", "reset", "resume", "shutdown", "stand"]

_RESUME_GRACE = 5.0

AskGuest = Callable[[], Awaitable[None]]


async def pause(machine: Machine) -> None:
    """Stop the guest's vCPUs as its owner wishes (`Machine.halted`), and wait until they stand."""
    await stand(machine)
    machine.halted = True


async def stand(machine: Machine) -> None:
    """Stop the guest's vCPUs and wait until they stand (QMP `stop`)."""
    with machine.expecting(*_STANDING) as standing:
        await machine.execute("stop")
        await standing.wait()


async def resume(machine: Machine) -> None:
    """Let the guest's vCPUs run and wait until they do (QMP `cont`)."""
    machine.halted = False
    with machine.expecting(State.RUNNING, State.SUSPENDED) as awake:
        await machine.execute("cont")
        await awake.wait()


# In the others than PAUSED `stop` changes nothing, and QEMU emits no STOP for it.
_STANDING = tuple(state for state in State if state not in (State.RUNNING, State.GONE))


@asynccontextmanager
async def paused(machine: Machine) -> AsyncIterator[None]:
    """The guest stands still within the block; a guest that ran before runs again after.

    The guest is resumed also when the block fails or is cancelled, within a bound
    of 5 s.  A machine that was paused already stays paused.
    """
    machine.must_live("pausing")
    if machine.state is not State.RUNNING:
        await trio.lowlevel.checkpoint()
        yield
        return
    try:
        await pause(machine)
        yield
    finally:
        # `stop` may have taken effect although its reply was never awaited: always resume.
        if machine.report is None:
            with trio.move_on_after(_RESUME_GRACE, shield=True):
                await resume(machine)


async def reset(machine: Machine) -> None:
    """Press the reset button (QMP `system_reset`) and wait for QEMU's RESET event."""
    try:
        with machine.subscribe("RESET") as resets:
            await machine.execute("system_reset")
            await resets.next()
    except MonitorLost as lost:
        await machine.explain(lost, "system_reset")
        raise


async def powerdown(machine: Machine, ask: AskGuest | None = None) -> None:
    """Ask the guest to shut itself down; returns at once, `machine.wait()` tells when it has.

    *ask* replaces the power button (QMP `system_powerdown`, on a board without one the
    power key of its keyboard), for instance by the guest agent's `shutdown`.
    """
    await (_press_button(machine) if ask is None else ask())


async def _press_button(machine: Machine) -> None:
    board = board_of(machine.spec.machine, machine.spec.arch)
    if board is None or board.button:
        await machine.execute("system_powerdown")
        return
    key = {"type": "qcode", "data": "power"}
    strokes = [{"type": "key", "data": {"down": down, "key": key}} for down in (True, False)]
    await machine.execute("input-send-event", {"events": strokes})


async def shutdown(
    machine: Machine,
    *,
    grace: float,
    ask: AskGuest | None = None,
    escalate: bool = True,
) -> ExitReport:
    """Power the guest down, and end QEMU when the guest has not obeyed within *grace* seconds.

    A guest that stands still (paused, panicked, …) would not notice: it is not asked,
    and QEMU is ended at once.  With `escalate=False` a guest that does not obey, or
    cannot notice, raises GuestRefused and is left as it is.  Cancelled, nothing is
    undone: a guest that was asked may still shut down.  MachineGone when it has ended
    before it is asked; an end in the meantime is the report.
    """
    check_grace("grace", grace)
    machine.must_live("shutdown")
    state = machine.state
    if state is State.RUNNING:
        with trio.move_on_after(grace):
            with suppress(MachineGone):
                await powerdown(machine, ask)
            return await machine.wait()
        if not escalate:
            raise GuestRefused(machine.name, "to power down", f"still running after {grace:g} s")
    elif not escalate and state is not State.SHUTDOWN:
        cure = "reset" if state is State.PANICKED else "resume"
        why = f"it is {state.value}, so it cannot notice. Cure: {cure} it first"
        raise GuestRefused(machine.name, "to power down", why)
    return await machine.stop()
