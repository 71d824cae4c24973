"""`running(spec)` and `restored(path)`: a VM for the length of a block, and nothing of it after."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit.errors import HostLacks, MachineDied, MachineGone
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.images.prepare import prepared_disks
from qmpkit.machine.launch import LaunchOptions, Starter, launched, start_qemu
from qmpkit.machine.machine import Machine, check_grace
from qmpkit.operations.saved.restoring import restorable
from qmpkit.operations.tune.live import take_place
from qmpkit.process.spawner import shared_spawner
from qmpkit.qmp.errors import MonitorLost
from qmpkit.spec.machine import MachineSpec
from qmpkit.vm import VM

__all__ = ["log_directory", "opened", "opened_as", "restored", "running"]
__all__ += ["raise_death", "surfacing_death"]

log = logging.getLogger("qmpkit")


@asynccontextmanager
async def running(
    spec: MachineSpec,
    *,
    paused: bool = False,
    powerdown_grace: float = 0.0,
    logs: str | os.PathLike[str] | None = None,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> AsyncIterator[VM]:
    """Run the machine that *spec* describes; no process of it outlives the block.

    The guest runs when the block is entered, or stands before its first instruction
    with `paused=True`.  At the end of the block QEMU is stopped in order; with
    *powerdown_grace* the guest first gets that many seconds to shut itself down.
    When the block fails or is cancelled QEMU is stopped at once.  Even a SIGKILL of
    this Python process ends QEMU.

    *logs*: a directory for the bounded logs of QEMU's stderr and the consoles, made
    (0700) when it is missing.  *start* is for tests: who starts it instead of QEMU.

    Raises SpecInvalid or HostLacks before anything is started, LaunchFailed when
    QEMU does not get ready, and MachineDied, after cancelling the block, when QEMU
    ends out of the blue, or at its end, when QEMU crashes as it is stopped.  A guest that
    shuts itself down or panics does not cancel the block: `vm.wait()` returns and later
    calls raise MachineGone.  The block's own exception leaves as it is, together with a
    MachineDied in a group.
    """
    check_grace("powerdown_grace", powerdown_grace)
    async with (
        shared_spawner(),  # first of all, so that it comes up while we look around
        opened(spec, logs=logs, options=options, start=start) as vm,
        surfacing_death(vm.machine),
        _going(vm, paused=paused, powerdown_grace=powerdown_grace),
    ):
        yield vm
    raise_death(vm.machine)


@asynccontextmanager
async def restored(
    path: str | os.PathLike[str],
    *,
    layers: str | os.PathLike[str] | None = None,
    verify: bool = False,
    paused: bool = False,
    powerdown_grace: float = 0.0,
    logs: str | os.PathLike[str] | None = None,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> AsyncIterator[VM]:
    """Run the machine that `vm.save` has saved at *path*: its guest goes on where it was.

    Everything else is as with `running`.  It goes on with the disks that it was saved with,
    those that stayed where they were or the copies in the folder, and once: after that they
    are not those of the RAM any more.  With *layers*, a directory that is made when it is not
    there, they are only read, and what the guest writes goes into new images there
    (`disk0.qcow2`, …), which stay: so it can be restored any number of times, into as many
    directories.

    Before QEMU is started SpecInvalid tells all that keeps it from going on: a folder of a
    newer qmpkit, a machine type that this QEMU lacks, a processor that lacks what the guest
    has found, files that are not as they were, disks that were written to since.  Files are
    sampled; with *verify* every byte of the folder is read.  ImageInUse when another restores
    it, LaunchFailed when QEMU does not take the state (`migrate-incoming`).  Failed or
    cancelled before the guest runs, it can be restored as before.  The guest's clock stands
    where it stood: have it set by the guest (NTP), or by its agent.
    """
    check_grace("powerdown_grace", powerdown_grace)
    async with shared_spawner():
        where = None if layers is None else Path(layers)
        async with restorable(Path(path), layers=where, verify=verify) as found:
            opening = opened(found.spec, logs=logs, options=options, start=start)
            async with AsyncExitStack() as stack:
                vm = await stack.enter_async_context(opening)
                await found.used()
                held = stack.pop_all()
        async with (
            held,
            surfacing_death(vm.machine),
            _going(vm, paused=paused, powerdown_grace=powerdown_grace),
        ):
            yield vm
    raise_death(vm.machine)


@asynccontextmanager
async def _going(vm: VM, *, paused: bool, powerdown_grace: float) -> AsyncIterator[None]:
    if not paused:
        await vm.resume()
    yield
    if powerdown_grace and vm.report is None:
        await vm.shutdown(grace=powerdown_grace)


@asynccontextmanager
async def opened(
    spec: MachineSpec,
    *,
    logs: str | os.PathLike[str] | None = None,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> AsyncIterator[VM]:
    """Start *spec* paused as a VM whose death cancels nobody: what `running` is made of."""
    options = options or LaunchOptions()
    folder = None
    if logs is not None:
        folder = await trio.to_thread.run_sync(log_directory, Path(logs))
        options = attrs.evolve(options, stderr_log=folder / "stderr.log")
    resolution = await resolve(spec)
    for warning in resolution.warnings:
        log.warning("machine %r: %s", spec.name, warning)
    async with (
        prepared_disks(resolution.spec) as made,
        opened_as(resolution, logs=folder, options=options, start=start) as vm,
    ):
        made.keep()
        yield vm


@asynccontextmanager
async def opened_as(
    resolution: Resolution,
    *,
    logs: Path | None = None,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> AsyncIterator[VM]:
    """`opened` of what has been resolved, and whose images are there."""
    made: list[VM] = []
    starting = launched(
        resolution, options, start=start, meanwhile=lambda it: made.append(VM(it, logs=logs))
    )
    async with starting as machine:
        await take_place(machine)
        yield made[0]


def log_directory(logs: Path) -> Path:
    """*logs*, made when it is missing; absolute, as the program may change its directory."""
    try:
        folder = logs.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the directory for logs {str(logs)!r}: {error.strerror}"
        raise HostLacks(what, "name another in `logs`") from error
    return folder


@asynccontextmanager
async def surfacing_death(
    machine: Machine, *, since: trio.Event | None = None
) -> AsyncIterator[None]:
    """Cancel the block when the machine dies out of the blue, and raise MachineDied for it.

    *since*: only after that; until then its end is somebody else's to tell of.
    """
    try:
        with trio.CancelScope() as block:
            machine.services.start_soon(_cancel_on_death, machine, block, since)
            yield
    except BaseException as error:
        death = _death(machine, since)
        if death is None:
            raise
        own = _own_part(error, machine.name)
        if own is None:
            raise death from error
        raise BaseExceptionGroup(
            f"the block failed and machine {machine.name!r} died", [own, death]
        ) from None
    raise_death(machine, since=since)


def raise_death(machine: Machine, *, since: trio.Event | None = None) -> None:
    """Raise MachineDied when it has died out of the blue, as `surfacing_death` does.

    Once more when QEMU has been stopped: it may have crashed on the way, or so late in the block
    that nobody had seen it by its end.
    """
    death = _death(machine, since)
    if death is not None:
        raise death


async def _cancel_on_death(
    machine: Machine, block: trio.CancelScope, since: trio.Event | None
) -> None:
    if since is not None:
        await since.wait()
    report = await machine.decided()
    if not report.expected:
        block.cancel()


def _death(machine: Machine, since: trio.Event | None) -> MachineDied | None:
    if machine.report is None or machine.report.expected:
        return None
    if since is not None and not since.is_set():
        return None
    return MachineDied(machine.report)


def _own_part(error: BaseException, machine: str) -> BaseException | None:
    """*error* without what only says in other words that the machine is gone."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(lambda part: _is_echo(part, machine))[1]
    return None if _is_echo(error, machine) else error


def _is_echo(error: BaseException, machine: str) -> bool:
    match error:
        case MachineDied():
            return error.report.machine == machine
        case MachineGone() | MonitorLost():
            return error.machine == machine
    # A cancellation from outside at the same time: the death is the news.
    return isinstance(error, trio.Cancelled)
