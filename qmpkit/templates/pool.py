"""`Pool`: clones that are started ahead, so that taking one costs as little as can be."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType

import attrs
import trio

from qmpkit._running import surfacing_death
from qmpkit._trio import ServiceNursery, service_nursery
from qmpkit.errors import Fault, MachineDied, MachineGone, QmpkitError, SpecInvalid
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.process.spawner import shared_spawner
from qmpkit.qmp.errors import MonitorLost
from qmpkit.spec.sizes import MIB, format_size, to_bytes
from qmpkit.templates.arguments import count_faults, flag_faults
from qmpkit.templates.cloning import Empty, Wishes, empty_clone
from qmpkit.templates.errors import PoolClosed, TemplateFailed
from qmpkit.templates.host import memory_left
from qmpkit.templates.stock import Bounds, Place, Step, moved, to_start
from qmpkit.templates.template import Template
from qmpkit.vm import VM

__all__ = ["Pool"]

log = logging.getLogger("qmpkit.pool")

_QEMU_SHARE = 64 * MIB  # that a QEMU takes beside its guest's memory, roughly
_HEALTH_BOUND = 2.0  # seconds in which a warm machine answers `query-status`
_REFILL_AFTER = 0.1  # seconds that one just taken has the CPU for itself, while nobody waits
_NOT_ENTERED = "it is not entered. Cure: `async with pool:` first"
_TRIES = 3  # starts in a row that fail before the pool gives up; and of one taker


@attrs.define(eq=False)
class _Held:
    """One machine of the pool; `over` ends it."""

    place: Place = Place.STARTING
    empty: Empty | None = None
    over: trio.Event = attrs.field(factory=trio.Event)

    def step(self, step: Step) -> None:
        self.place = moved(self.place, step)
        if self.place is Place.ENDING:
            self.over.set()

    @property
    def clone(self) -> Empty:
        assert self.empty is not None, "it is not ready"
        return self.empty


@attrs.define(eq=False)
class _Taker:
    """Who waits for a machine; woken without one, the pool gives none any more."""

    held: _Held | None = None
    woken: trio.Event = attrs.field(factory=trio.Event)


class Pool:
    """`async with Pool(template, warm=8) as pool:` clones that wait, `pool.take()` gives one.

    *warm*: how many are held ready.  With *loaded* they have the template's state and stand
    still; without, their process waits for it, which costs some 15 MiB less each, and 10 ms when
    one is taken.  *memory*: at most so much for all its machines, those taken too, each counted
    with all of its guest's RAM; by default what the host has left.  *ssh_host_keys*, *twin*,
    *place* and *options* are those of `Template.clone`.

    A machine is given once and discarded then: the next is as the template is.  Those that
    are taken are replaced in the background.  At the end of the block all are ended.

    Raises SpecInvalid for arguments that are none; entering does when the bounds do not fit
    together.
    """

    def __init__(
        self,
        template: Template,
        *,
        warm: int = 1,
        loaded: bool = True,
        memory: int | str | None = None,
        twin: bool = False,
        ssh_host_keys: bool = False,
        place: str | os.PathLike[str] | None = None,
        options: LaunchOptions | None = None,
        start: Starter = start_qemu,
    ) -> None:
        self.template = template
        self._loaded = loaded
        self._wishes = Wishes(
            twin=twin,
            ssh_host_keys=ssh_host_keys,
            place=place,
            options=LaunchOptions() if options is None else options,
            start=start,
        )
        faults = [*count_faults("warm", warm, 0), *flag_faults(loaded=loaded)]
        self._warm = warm
        self._memory: int | None = None
        try:
            self._memory = None if memory is None else to_bytes(memory, "memory")
        except SpecInvalid as error:
            faults += error.faults
        self._wishes.refuse_impossible(template.saved, faults, what="a pool")
        self._held: list[_Held] = []
        self._ready: deque[_Held] = deque()
        self._takers: deque[_Taker] = deque()
        self._changed = trio.Event()
        self._failures = 0
        self._taken_at = float("-inf")
        self._closed: PoolClosed | None = PoolClosed(template.spec.name, _NOT_ENTERED)
        self._stack = AsyncExitStack()
        self._entered = False

    @property
    def counts(self) -> dict[str, int]:
        """How many machines are "starting", "warm", "taken" and "ending", and takers "waiting"."""
        counted = Counter(held.place for held in self._held)
        states = (Place.STARTING, Place.WARM, Place.TAKEN, Place.ENDING)
        return {**{it.value: counted[it] for it in states}, "waiting": len(self._takers)}

    async def __aenter__(self) -> Pool:
        if self._entered:
            raise RuntimeError("a Pool is entered once: make another")
        self._entered = True
        bounds = self._bounds(await trio.to_thread.run_sync(memory_left))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(shared_spawner())
            services = await stack.enter_async_context(service_nursery())
            stack.callback(self._close, PoolClosed(self.template.spec.name))
            self._closed = None
            services.start_soon(self._tend, services, bounds, name="pool")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    def _bounds(self, left: int) -> Bounds:
        each = self.template.spec.memory.total + _QEMU_SHARE
        memory = left if self._memory is None else self._memory
        bounds = Bounds(self._warm, memory // each, os.cpu_count() or 1)
        if bounds.most < max(self._warm, 1):
            message = f"{format_size(memory)} holds {bounds.most} of {format_size(each)} each"
            hint = f"at least {format_size(each * max(self._warm, 1))}, or fewer warm"
            fault = Fault("memory", message, hint)
            raise SpecInvalid([fault], f"a pool of {self.template.spec.name!r}")
        return bounds

    # Giving

    async def wait_warm(self) -> None:
        """Wait until as many machines are warm as are to be; PoolClosed when it cannot be."""
        while len(self._ready) < self._warm:
            self._must_be_open()
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[VM]:
        """`async with pool.take() as vm:` a clone of the block's own, running, and somebody.

        Who came first gets the first that is ready.  One that does not answer, or dies before
        the block is entered, is replaced by the next.  In the block it is as by
        `Template.clone`; at the end it is ended in the background.

        Raises PoolClosed when the pool has ended, or three starts in a row have failed (from
        the last one's error), and what `Template.clone` raises.
        """
        held = await self._next_awake()
        try:
            vm = held.clone.vm
            async with surfacing_death(vm.machine):
                yield vm
        finally:
            self._step(held, Step.DISCARD)

    async def _next_awake(self) -> _Held:
        trouble: Exception | None = None
        for turn in range(_TRIES):
            held = await self._next(first=turn > 0)
            try:
                if await _answers(held.clone.vm):
                    await held.clone.wake()
                    return held
            except (MachineDied, MachineGone, MonitorLost, TemplateFailed) as lost:
                log.warning("pool of %r: %s", self.template.spec.name, lost)
                trouble = lost
            except BaseException:
                self._step(held, Step.DISCARD)
                raise
            self._step(held, Step.DISCARD)
        why = f"{_TRIES} machines in a row were dead or silent when they were to be taken"
        raise PoolClosed(self.template.spec.name, why) from trouble

    async def _next(self, *, first: bool) -> _Held:
        """The machine that is this taker's; *first*: its turn has been already."""
        self._must_be_open()
        taker = _Taker()
        (self._takers.appendleft if first else self._takers.append)(taker)
        self._match()
        try:
            await taker.woken.wait()
        except BaseException:  # cancelled, and perhaps given one in the same moment
            if taker in self._takers:
                self._takers.remove(taker)
            if taker.held is not None and taker.held.place is Place.TAKEN:
                self._put_back(taker.held)
            self._changes()
            raise
        if taker.held is None:
            self._must_be_open()
        assert taker.held is not None, "it was woken with a machine, or at the end"
        return taker.held

    def _must_be_open(self) -> None:
        if self._closed is not None:
            raise PoolClosed(self._closed.template, self._closed.why) from self._closed.__cause__

    # Keeping account: nothing below waits, so whatever is seen is true

    def _match(self) -> None:
        """Give the first takers the machines that have been ready longest."""
        while self._takers and self._ready:
            held = self._ready.popleft()
            held.step(Step.TAKE)
            taker = self._takers.popleft()
            taker.held = held
            taker.woken.set()
            self._taken_at = trio.current_time()
        self._changes()

    def _put_back(self, held: _Held) -> None:
        held.step(Step.PUT_BACK)
        self._ready.appendleft(held)
        self._match()

    def _step(self, held: _Held, step: Step) -> None:
        if held.place is Place.GONE:
            return  # the pool has ended before its taker
        held.step(step)
        if held in self._ready:
            self._ready.remove(held)
        self._changes()

    def _changes(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _close(self, why: PoolClosed) -> None:
        if self._closed is None:
            self._closed = why
        for taker in self._takers:
            taker.woken.set()
        self._takers.clear()
        self._changes()

    # Refilling

    async def _tend(self, services: ServiceNursery, bounds: Bounds) -> None:
        while self._closed is None:
            refill_at = self._taken_at + _REFILL_AFTER
            rests = not self._takers and trio.current_time() < refill_at
            counted = Counter(held.place for held in self._held)
            for _ in range(0 if rests else to_start(counted, len(self._takers), bounds)):
                held = _Held()
                self._held.append(held)
                services.start_soon(self._live, held, name="machine of a pool")
            with trio.move_on_at(refill_at if rests else float("inf")):
                await self._changed.wait()

    async def _live(self, held: _Held) -> None:
        """The life of one machine, from its start until it is discarded."""
        try:
            async with empty_clone(self.template.saved, self._wishes, None) as empty:
                if self._loaded:
                    await empty.load()
                held.empty = empty
                empty.vm.machine.services.start_soon(self._watch, held, name="watch of a pool")
                self._failures = 0
                held.step(Step.READY)
                self._ready.append(held)
                self._match()
                await held.over.wait()
        except QmpkitError as error:
            self._failed(held, error)
        finally:
            self._step(held, Step.END)
            self._held.remove(held)
            self._changes()

    async def _watch(self, held: _Held) -> None:
        """What dies while it is warm is not given: another takes its place."""
        await held.clone.vm.wait()
        if held.place is Place.WARM and self._closed is None:
            log.warning("pool of %r: %s", self.template.spec.name, held.clone.vm.report)
            self._step(held, Step.DISCARD)

    def _failed(self, held: _Held, error: QmpkitError) -> None:
        log.warning("pool of %r: %s", self.template.spec.name, error)
        if held.empty is not None:
            return  # it was ready once
        self._failures += 1
        if self._failures >= _TRIES:
            why = f"{_TRIES} starts in a row have failed: {error}"
            closed = PoolClosed(self.template.spec.name, why)
            closed.__cause__ = error
            self._close(closed)


async def _answers(vm: VM) -> bool:
    with trio.move_on_after(_HEALTH_BOUND):
        await vm.execute("query-status")
        return True
    log.warning("machine %r does not answer, so it is not given to anybody", vm.name)
    return False
