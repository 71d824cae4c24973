"""Many machines under one roof: none cancels another, all are stopped together."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from qmpkit._running import opened
from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault, MachineDied, MachineGone, QmpkitError, SpecInvalid
from qmpkit.machine.keep import Ground, QemuGround
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.machine.machine import check_grace
from qmpkit.process.limits import raise_nofile
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.events import EventLog, Happenings
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.record import Declared
from qmpkit.supervisor.table import Row
from qmpkit.vm import VM

__all__ = ["Supervisor"]

log = logging.getLogger("qmpkit.supervisor")


class Supervisor:
    """Runs many machines; `async with qmpkit.Supervisor("lab") as lab:`.

    Machines of two lifetimes.  Those of `start` end with the block.  With `keep=True`
    those of `ensure` outlive it, and this program: what they are and what is wanted of
    them is written down in the supervisor's directory, and whoever opens a supervisor of
    that *name* next adopts them.  Only one at a time can.

    *starts* machines are brought up at the same time (default: one a CPU), further
    ones wait in a queue.  A machine that dies is reported in `table` and `subscribe`
    and cancels neither its siblings nor the block.  The end of the block, however it
    comes, stops every machine: with *powerdown_grace* the guests first get that many
    seconds, all at the same time, to shut themselves down.

    *options* hold for kept machines, *start* and *ground* are for tests.  Entering raises
    `SupervisorRunning` when another one has the directory, `JournalNewer` when a later
    qmpkit has written in it, `HostLacks` when it cannot be had.
    """

    def __init__(
        self,
        name: str = "qmpkit",
        *,
        starts: int | None = None,
        powerdown_grace: float = 0.0,
        logs: str | os.PathLike[str] | None = None,
        keep: bool = False,
        start: Starter = start_qemu,
        ground: Ground | None = None,
        options: LaunchOptions | None = None,
    ) -> None:
        self.name = name
        check_grace("powerdown_grace", powerdown_grace)
        self.powerdown_grace = powerdown_grace
        self._logs = None if logs is None else Path(logs).absolute()
        self._start = start
        if starts is not None and starts < 1:
            raise ValueError(f"starts={starts!r}: no machine would ever be started")
        self._limit = trio.CapacityLimiter(starts or os.cpu_count() or 1)
        self._records: dict[str, _Record] = {}
        self._log = EventLog(f"supervisor {name!r}")
        self._keeper: Keeper | None = None
        if keep:
            self._keeper = Keeper(
                name,
                events=self._log,
                ground=ground or QemuGround(),
                starts=self._limit,
                options=options or LaunchOptions(),
                powerdown_grace=powerdown_grace,
            )
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        if self._log.closed or self._nursery is not None:
            raise RuntimeError("a Supervisor is entered once: make another")
        await self._stack.enter_async_context(self._open())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    @property
    def machines(self) -> Mapping[str, VM]:
        """The machines that are up, by name; of the kept ones those whose monitor answers."""
        holders: dict[str, _Record | Kept] = {**self._records, **self.kept}
        return {name: it.vm for name, it in holders.items() if it.vm and not it.vm.report}

    @property
    def kept(self) -> Mapping[str, Kept]:
        """The kept machines, up or down, by name."""
        return {} if self._keeper is None else dict(self._keeper.machines)

    def table(self) -> tuple[Row, ...]:
        """A row for every machine ever started here, also those that have ended, and every
        kept one.
        """
        rows = [record.row() for record in self._records.values()]
        return (*rows, *(kept.row() for kept in self.kept.values()))

    def subscribe(self, buffer: int = 10_000) -> AbstractContextManager[Happenings]:
        """Follow what happens to all machines: `with lab.subscribe() as events: async for …`."""
        return self._log.subscribe(buffer)

    async def start(
        self, spec: MachineSpec, *, paused: bool = False, options: LaunchOptions | None = None
    ) -> VM:
        """Start a machine and return when its guest runs (with *paused*, when it could).

        Raises SpecInvalid, HostLacks or LaunchFailed as `qmpkit.running` does, and
        SpecInvalid for a name that a living machine has; the siblings do not notice.
        MachineGone when `stop` or the block's end overtakes it.  Cancelled, the machine
        is taken down again.
        """
        record = await self._admit(spec)
        vm: VM = await self._open_nursery().start(self._keep, record, spec, paused, options)
        return vm

    async def ensure(
        self, spec: MachineSpec, *, restart: str | Restart | None = "on-failure"
    ) -> Kept:
        """Have a kept machine that is as *spec* says, declared running; start it when it is down.

        *restart*: "never", "on-failure", "always", or a `Restart`.  Returns when QEMU is
        up and outlives us; `Kept.wait_running` waits for the guest.  The declaration is
        safe on disk before anything is started.

        Raises SpecInvalid, HostLacks or LaunchFailed as `qmpkit.running` does,
        JournalFailed when the journal cannot be written, SpecInvalid too when a machine
        of that name is up with another spec.  Failed or cancelled, a machine that was
        down is down again, and what was declared before holds.
        """
        keeper = self._kept_machines()
        if (known := self._records.get(spec.name)) and not known.over.is_set():
            fault = Fault("name", f"{spec.name!r} is taken by a machine of this block")
            raise SpecInvalid([fault], source=f"supervisor {self.name!r}")
        return await keeper.ensure(spec, restart)

    async def declare(
        self, name: str, state: Declared, *, powerdown_grace: float | None = None
    ) -> Kept:
        """Say what a kept machine is to be, "running", "paused" or "stopped", and wait until it is.

        It is written down first: a stop is never answered by the restart policy, and a
        change that is interrupted by our death is finished by the next supervisor.  To
        stop, a guest that runs is asked to power down, and ended when it has not within
        the grace (default: the supervisor's own).  One that is down and is to be up starts
        with a clean slate: its crash loop is forgiven, its restarts count from 0.

        A journal that cannot be written raises JournalFailed, but for "stopped": that is
        done all the same, and `Kept.not_durable` says that the next supervisor will not
        know.  Raises SpecInvalid for an unknown name, CommandRefused when QEMU says no,
        what `ensure` does when it has to be started.  Cancelled, it is still made true.
        """
        if powerdown_grace is not None:
            check_grace("powerdown_grace", powerdown_grace)
        return await self._kept_machines().declare(name, state, powerdown_grace)

    async def forget(self, name: str) -> None:
        """Forget a kept machine that is down, with its logs; its disks stay.

        Raises SpecInvalid for one that is up or unknown, JournalFailed.
        """
        await self._kept_machines().forget(name)

    async def stop(self, *, powerdown_grace: float | None = None) -> None:
        """Stop every machine but the kept ones, all at once, and return when none is left.

        A guest that runs is asked to power down and ended when it has not within the
        grace (default: the supervisor's own; 0 ends it at once).  Starts under way are
        given up.  Cancelled, those that were asked may still end.
        """
        grace = self.powerdown_grace if powerdown_grace is None else powerdown_grace
        check_grace("powerdown_grace", grace)
        async with trio.open_nursery() as nursery:
            for record in self._records.values():
                if not record.over.is_set():
                    nursery.start_soon(_stop_one, record, grace)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        raise_nofile()  # a machine takes about 8 descriptors
        try:
            async with (
                shared_spawner(),
                nullcontext() if self._keeper is None else self._keeper.open(),
                trio.open_nursery() as nursery,
            ):
                self._nursery = nursery
                try:
                    yield
                finally:
                    self._nursery = None
                    await self._stop_all()
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        finally:
            self._log.close()

    async def _stop_all(self) -> None:
        bound = self.powerdown_grace + LaunchOptions().graces.total
        with trio.move_on_after(bound, shield=True):
            await self.stop()
        # Whoever is left is taken down by its own cleanup, which has a bound of its own.
        for record in self._records.values():
            record.scope.cancel()

    def _open_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("this supervisor is not open: use `async with Supervisor() as lab`")
        return self._nursery

    def _kept_machines(self) -> Keeper:
        self._open_nursery()
        if self._keeper is None:
            raise RuntimeError("this supervisor keeps no machines: make it with keep=True")
        return self._keeper

    async def _admit(self, spec: MachineSpec) -> _Record:
        self._open_nursery()
        if spec.name in self.kept:
            fault = Fault("name", f"{spec.name!r} is taken by a kept machine")
            raise SpecInvalid([fault], source=f"supervisor {self.name!r}")
        while (known := self._records.get(spec.name)) and not known.over.is_set():
            if known.vm is None or known.vm.report is None:
                fault = Fault("name", f"{spec.name!r} is taken by a machine of this supervisor")
                raise SpecInvalid([fault], source=f"supervisor {self.name!r}")
            # It has ended, and the last of it vanishes in this moment.
            await known.over.wait()
        record = self._records[spec.name] = _Record(spec.name, self._log)
        return record

    async def _keep(
        self,
        record: _Record,
        spec: MachineSpec,
        paused: bool,
        options: LaunchOptions | None,
        task_status: trio.TaskStatus[VM],
    ) -> None:
        """One machine's whole life.  The one place where a machine's failure is caught."""
        try:
            with record.scope:
                await self._live(record, spec, paused, options, task_status)
        except Exception:
            if not record.handed_over:
                raise
            # Also what is no error of ours: the siblings are not to pay for it.
            log.exception("machine %r failed while it was taken down", record.name)
        finally:
            record.end()
        if not record.handed_over:
            raise MachineGone(record.name, "its start")

    async def _live(
        self,
        record: _Record,
        spec: MachineSpec,
        paused: bool,
        options: LaunchOptions | None,
        task_status: trio.TaskStatus[VM],
    ) -> None:
        async with AsyncExitStack() as stack:
            try:
                vm = await self._bring_up(stack, record, spec, paused, options)
            except Exception as error:
                record.enter("failed", str(error))
                raise
            record.handed_over = True
            task_status.started(vm)
            # Had the caller been cancelled at this moment, the task is still the caller's:
            # its cancellation strikes here, and a shield would keep it waiting for ever.
            await trio.lowlevel.checkpoint_if_cancelled()
            # From here on it belongs to the supervisor: only `stop` ends it.
            record.scope.shield = True
            await vm.wait()

    async def _bring_up(
        self,
        stack: AsyncExitStack,
        record: _Record,
        spec: MachineSpec,
        paused: bool,
        options: LaunchOptions | None,
    ) -> VM:
        record.enter("queued", "start was asked for")
        logs = None if self._logs is None else self._logs / record.name
        async with self._limit:
            record.enter("starting", "its turn has come")
            vm = await stack.enter_async_context(
                opened(spec, logs=logs, options=options, start=self._start)
            )
            record.attach(vm)
            if not paused:
                await vm.resume()
        return vm


class _Record:
    """What the supervisor keeps of one machine."""

    def __init__(self, name: str, events: EventLog) -> None:
        self.name = name
        self.vm: VM | None = None
        self.handed_over = False  # to the caller of `start`
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self._events = events
        self._state = ""
        self._cause = ""
        self._entered = trio.current_time()

    def attach(self, vm: VM) -> None:
        self.vm = vm
        self.enter(vm.state.value, "QEMU is up")
        vm.machine.on_state = lambda state, cause: self.enter(state.value, cause)

    def enter(self, state: str, cause: str) -> None:
        self._state, self._cause, self._entered = state, cause, trio.current_time()
        self._events.tell(self.name, state, cause)

    def end(self) -> None:
        if self._state in ("queued", "starting"):
            self.enter("failed", "the start was cancelled")
        self.over.set()

    def row(self) -> Row:
        live = self.vm is not None and self.vm.report is None
        return Row(
            machine=self.name,
            state=self._state,
            since=trio.current_time() - self._entered,
            cause=self._cause,
            pid=self.vm.pid if live and self.vm else None,
            accel=self.vm.accel if self.vm else None,
        )


async def _stop_one(record: _Record, grace: float) -> None:
    """Stop one machine; what goes wrong with it is no reason to leave the others."""
    vm = record.vm
    if vm is None or not record.handed_over:
        record.scope.cancel()
    else:
        try:
            await _end(vm, grace)
        except QmpkitError:
            log.exception("machine %r could not be stopped in order", vm.name)
            record.scope.cancel()
    await record.over.wait()


async def _end(vm: VM, grace: float) -> None:
    try:
        if grace:
            await vm.shutdown(grace=grace)
        else:
            await vm.quit()
    except (MachineDied, MachineGone):
        log.info("machine %r ended while it was being stopped: %s", vm.name, vm.report)
