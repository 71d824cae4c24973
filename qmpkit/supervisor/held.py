"""The machines of a block: none of them outlives it, and none cancels another."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Container
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from qmpkit._running import opened
from qmpkit.errors import Fault, MachineDied, MachineGone, QmpkitError, SpecInvalid, cause_of
from qmpkit.machine.launch import LaunchOptions, Starter
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.table import Row
from qmpkit.vm import VM

__all__ = ["Held", "Holder"]

log = logging.getLogger("qmpkit.supervisor")


class Holder:
    """The machines of `Supervisor.start`; the end of `open` stops them all.

    *kept*: names of machines that are kept, which these cannot have.
    """

    def __init__(
        self,
        source: str,
        *,
        events: EventLog,
        starts: trio.CapacityLimiter,
        start: Starter,
        logs: Path | None,
        powerdown_grace: float,
        kept: Container[str],
    ) -> None:
        self.machines: dict[str, Held] = {}
        self._source = source
        self._events = events
        self._starts = starts
        self._start = start
        self._logs = logs
        self._powerdown_grace = powerdown_grace
        self._kept = kept

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Machines can be started within the block."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                await self._stop_all()

    async def start(self, spec: MachineSpec, paused: bool, options: LaunchOptions | None) -> VM:
        """See `Supervisor.start`."""
        record = await self._admit(spec)
        vm: VM = await self._nursery.start(self._keep, record, spec, paused, options)
        return vm

    async def stop(self, grace: float) -> None:
        """See `Supervisor.stop`."""
        async with trio.open_nursery() as nursery:
            for record in self.machines.values():
                if not record.over.is_set():
                    nursery.start_soon(_stop_one, record, grace)

    async def _stop_all(self) -> None:
        bound = self._powerdown_grace + LaunchOptions().graces.total
        with trio.move_on_after(bound, shield=True):
            await self.stop(self._powerdown_grace)
        # Whoever is left is taken down by its own cleanup, which has a bound of its own.
        for record in self.machines.values():
            record.scope.cancel()

    async def _admit(self, spec: MachineSpec) -> Held:
        while (known := self.machines.get(spec.name)) and not known.over.is_set():
            if known.vm is None or known.vm.report is None:
                fault = Fault("name", f"{spec.name!r} is taken by a machine of this supervisor")
                raise SpecInvalid([fault], source=self._source)
            # It has ended, and the last of it vanishes in this moment.
            await known.over.wait()
        if spec.name in self._kept:  # perhaps since then
            fault = Fault("name", f"{spec.name!r} is taken by a kept machine")
            raise SpecInvalid([fault], source=self._source)
        record = self.machines[spec.name] = Held(spec.name, self._events)
        return record

    async def _keep(
        self,
        record: Held,
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
        record: Held,
        spec: MachineSpec,
        paused: bool,
        options: LaunchOptions | None,
        task_status: trio.TaskStatus[VM],
    ) -> None:
        async with AsyncExitStack() as stack:
            try:
                vm = await self._bring_up(stack, record, spec, paused, options)
            except Exception as error:
                record.enter("failed", cause_of(error))
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
        record: Held,
        spec: MachineSpec,
        paused: bool,
        options: LaunchOptions | None,
    ) -> VM:
        record.enter("queued", "start was asked for")
        logs = None if self._logs is None else self._logs / record.name
        async with self._starts:
            record.enter("starting", "its turn has come")
            vm = await stack.enter_async_context(
                opened(spec, logs=logs, options=options, start=self._start)
            )
            record.attach(vm)
            if not paused:
                await vm.resume()
        return vm


class Held:
    """One machine of a block, from its start to its end."""

    def __init__(self, name: str, events: EventLog) -> None:
        self.name = name
        self.vm: VM | None = None
        self.handed_over = False  # to the caller of `start`
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self._events = events
        self._state = ""
        self._cause = ""
        self._accel: str | None = None
        self._entered = trio.current_time()

    def attach(self, vm: VM) -> None:
        self.vm, self._accel = vm, vm.accel
        self.enter(vm.state.value, "QEMU is up")
        vm.machine.on_state = lambda state, cause: self.enter(state.value, cause)

    def enter(self, state: str, cause: str) -> None:
        self._state, self._cause, self._entered = state, cause, trio.current_time()
        self._events.tell(self.name, state, cause)

    def end(self) -> None:
        if self._state in ("queued", "starting"):
            self.enter("failed", "the start was cancelled")
        self.vm = None  # there may come thousands, and each has heard a console
        self.over.set()

    def row(self) -> Row:
        live = self.vm is not None and self.vm.report is None
        return Row(
            machine=self.name,
            state=self._state,
            since=trio.current_time() - self._entered,
            cause=self._cause,
            pid=self.vm.pid if live and self.vm else None,
            accel=self._accel,
        )


async def _stop_one(record: Held, grace: float) -> None:
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
