"""Many machines under one roof: none cancels another, all are stopped together."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
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

from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.keep import Ground, QemuGround
from qmpkit.machine.launch import LaunchOptions, Starter, start_qemu
from qmpkit.machine.machine import check_grace
from qmpkit.networks.farm_networks import FarmNetworks
from qmpkit.process.limits import raise_nofile
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.check import check_types
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.health import Health, to_health
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import Restart, to_restart
from qmpkit.supervisor.changes import Changes
from qmpkit.supervisor.drain import Drained, Told, drain
from qmpkit.supervisor.events import EventLog, Happenings
from qmpkit.supervisor.held import Held, Holder
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.networks import Networks
from qmpkit.supervisor.record import Declared, Wanted
from qmpkit.supervisor.saves import Saves
from qmpkit.supervisor.table import Row
from qmpkit.vm import VM

__all__ = ["Supervisor"]

log = logging.getLogger("qmpkit.supervisor")


class Supervisor(Saves, Changes):
    """Runs many machines; `async with qmpkit.Supervisor("lab") as lab:`.

    Machines of two lifetimes.  Those of `start` end with the block.  With `keep=True`
    those of `ensure` outlive it, and this program: what they are and what is wanted of
    them is written down in the supervisor's directory, and whoever opens a supervisor of
    that *name* next adopts them.  Only one at a time can.

    *starts* machines are brought up at the same time (default: two a CPU and four more, since
    a start waits for the disk too), further ones wait in a queue.  A machine that dies is reported
    in `table` and `subscribe` and cancels neither its siblings nor the block.  The end of
    the block, however it comes, stops every machine: with *powerdown_grace* the guests
    first get that many seconds, all at the same time, to shut themselves down.

    *options* hold for kept machines; *start*, *ground* and *networks* are for tests.
    Entering raises `SupervisorRunning` when another one has the directory, `JournalNewer`
    when a later qmpkit has written in it, `HostLacks` when it cannot be had.
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
        networks: Networks | None = None,
        options: LaunchOptions | None = None,
    ) -> None:
        self.name = name
        check_grace("powerdown_grace", powerdown_grace)
        self.powerdown_grace = powerdown_grace
        if starts is not None and starts < 1:
            raise ValueError(f"starts={starts!r}: no machine would ever be started")
        # A start keeps one processor busy, and waits in between: for a disk, for this process.
        at_once = starts or 2 * (os.cpu_count() or 1) + 4
        self._log = EventLog(f"supervisor {name!r}", waits=keep)
        self._keeper: Keeper | None = None
        if keep:
            self._keeper = Keeper(
                name,
                events=self._log,
                ground=ground or QemuGround(),
                networks=networks or FarmNetworks(),
                starts=at_once,
                options=options or LaunchOptions(),
                powerdown_grace=powerdown_grace,
            )
        self._holder = Holder(
            f"supervisor {name!r}",
            events=self._log,
            starts=trio.CapacityLimiter(at_once),
            start=start,
            logs=None if logs is None else Path(logs).absolute(),
            powerdown_grace=powerdown_grace,
            kept=() if self._keeper is None else self._keeper.machines,
        )
        self._stack = AsyncExitStack()
        self._opened = False

    async def __aenter__(self) -> Self:
        if self._log.closed or self._opened:
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
        holders: dict[str, Held | Kept] = {**self._holder.machines, **self.kept}
        return {name: it.vm for name, it in holders.items() if it.vm and not it.vm.report}

    @property
    def kept(self) -> Mapping[str, Kept]:
        """The kept machines, up or down, by name."""
        return {} if self._keeper is None else dict(self._keeper.machines)

    def table(self) -> tuple[Row, ...]:
        """A row for every machine ever started here, also those that have ended, and every
        kept one.
        """
        rows = [record.row() for record in self._holder.machines.values()]
        return (*rows, *(kept.row() for kept in self.kept.values()))

    def subscribe(
        self, buffer: int = 10_000, *, since: int | None = None
    ) -> AbstractContextManager[Happenings]:
        """Follow what happens to all machines: `with lab.subscribe() as events: async for …`.

        With *since* first what has happened after that number, as far as it is on record
        (with `keep=True` also from the supervisors before): -1 for all of it.  It can be
        called before the block is entered, so that nothing is missed of how machines are found.
        """
        return self._log.subscribe(buffer, since)

    @property
    def last_event(self) -> int:
        """The number of the last happening, for `subscribe(since=…)`."""
        return self._log.next - 1

    async def last_event_before(self, moment: float) -> int:
        """As `last_event`, of those before *moment* (seconds since the epoch); -1 without any."""
        return await self._log.before(moment)

    async def start(
        self, spec: MachineSpec, *, paused: bool = False, options: LaunchOptions | None = None
    ) -> VM:
        """Start a machine and return when its guest runs (with *paused*, when it could).

        Raises SpecInvalid, HostLacks or LaunchFailed as `qmpkit.running` does, and
        SpecInvalid for a name that a living machine has; the siblings do not notice.
        MachineGone when `stop` or the block's end overtakes it.  Cancelled, the machine
        is taken down again.
        """
        self._check_open()
        check_types(spec)
        return await self._holder.start(spec, paused, options)

    async def ensure(
        self,
        spec: MachineSpec,
        *,
        restart: str | Restart | None = "on-failure",
        health: Health | Iterable[str] | str | None = None,
        after: Iterable[str] = (),
        requires: Iterable[str] = (),
        farm: FarmMachine | None = None,
        paused: bool = False,
        wait: bool = True,
    ) -> Kept:
        """Have a kept machine that is as *spec* says, declared running; start it when it is down.

        *restart*: "never", "on-failure", "always", or a `Restart`.  *health*: how it is
        found out whether it does its work.  It starts once the kept machines of *after*
        have come up or will not, and those of *requires* are up.  *farm*: the machine of
        the farm file it comes from.  With *paused* it is declared paused instead.

        Returns when QEMU is up and outlives us; `Kept.wait_running` waits for the guest.
        Without *wait*, as soon as it is declared: then its start, if it fails, is answered
        by its policy.  The declaration is safe on disk before anything is started.

        Raises SpecInvalid, HostLacks or LaunchFailed as `qmpkit.running` does,
        JournalFailed when the journal cannot be written, SpecInvalid too when a machine
        of that name is up with another spec, StartBlocked when one of *requires* will not
        come up by itself, StartCalledOff when it is declared stopped while it waits, LeftAlone
        when the block ends meanwhile.
        Failed or cancelled, a machine that was down is down again, and what was declared
        before holds.
        """
        keeper = self._kept_machines()
        check_types(spec)
        if (known := self._holder.machines.get(spec.name)) and not known.over.is_set():
            fault = Fault("name", f"{spec.name!r} is taken by a machine of this block")
            raise SpecInvalid([fault], source=f"supervisor {self.name!r}")
        wanted = Wanted(
            spec=spec,
            restart=to_restart(restart),
            health=None if health is None else to_health(health),
            after=after,
            requires=requires,
            farm=farm,
            declared="paused" if paused else "running",
        )
        return await keeper.ensure(wanted, wait=wait)

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
        what `ensure` does when it has to be started.  Cancelled, it is still made true; when
        the block ends before it is (LeftAlone), the next supervisor does that.
        """
        if powerdown_grace is not None:
            check_grace("powerdown_grace", powerdown_grace)
        return await self._kept_machines().declare(name, state, powerdown_grace)

    async def amend(
        self,
        spec: MachineSpec,
        *,
        restart: str | Restart | None,
        health: Health | None = None,
        after: Iterable[str] = (),
        requires: Iterable[str] = (),
        farm: FarmMachine | None = None,
    ) -> Kept:
        """Note how a kept machine has changed that is up: *spec* is what it is now.

        Its supervisor obeys the new policy and order at once.  Of the spec nothing can differ
        but the forwards of NICs, which whoever calls this has changed, and the description.
        Raises SpecInvalid for an unknown name, or what `ensure` refuses; JournalFailed.
        """
        check_types(spec)
        wanted = Wanted(
            spec=spec,
            restart=to_restart(restart),
            health=health,
            after=after,
            requires=requires,
            farm=farm,
        )
        return await self._kept_machines().amend(wanted)

    async def stop_kept(
        self,
        names: Iterable[str] | None = None,
        *,
        powerdown_grace: float | None = None,
        deadline: float = float("inf"),
        told: Told = lambda name, done, total: None,
    ) -> tuple[Drained, ...]:
        """Declare kept machines stopped (default: all), and wait until they are down.

        In the reverse of their order of start, those that do not wait for one another at
        the same time, each guest with the grace of `declare`.  After *deadline* seconds
        all that are left are ended at once.  Gives how each went: one that cannot be
        stopped keeps up nobody.  *told* is called as each is down.
        Raises SpecInvalid for an unknown name.  Cancelled, what was declared is still made true.
        """
        keeper = self._kept_machines()
        wanted = [keeper.known(name).name for name in (self.kept if names is None else names)]

        async def stop(name: str, grace: float | None) -> None:
            await self.declare(name, "stopped", powerdown_grace=grace)

        return await drain(
            keeper.machines, wanted, stop, grace=powerdown_grace, deadline=deadline, told=told
        )

    @property
    def state_dir(self) -> Path:
        """The state directory of a supervisor that keeps machines; it is its user's alone."""
        return self._kept_machines().places.state

    @property
    def runtime_dir(self) -> Path:
        """The directory of its machines' sockets, which a reboot may take."""
        return self._kept_machines().places.runtime

    async def forget(self, name: str, *, disks: bool = False) -> None:
        """Forget a kept machine that is down, with its logs; its disks stay.

        Where its data are is remembered: a machine of its name that is made later, from a
        spec with the same files, goes on with the layers that these have got.  *disks*: not
        that, for they are about to be deleted.
        Raises SpecInvalid for one that is up or unknown, JournalFailed.
        """
        await self._kept_machines().forget(name, disks=disks)

    async def stop(self, *, powerdown_grace: float | None = None) -> None:
        """Stop every machine but the kept ones, all at once, and return when none is left.

        A guest that runs is asked to power down and ended when it has not within the
        grace (default: the supervisor's own; 0 ends it at once).  Starts under way are
        given up.  Cancelled, those that were asked may still end.
        """
        grace = self.powerdown_grace if powerdown_grace is None else powerdown_grace
        check_grace("powerdown_grace", grace)
        await self._holder.stop(grace)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        raise_nofile()  # a machine takes about 8 descriptors
        try:
            async with (
                shared_spawner(),
                nullcontext() if self._keeper is None else self._keeper.open(),
                self._holder.open(),
            ):
                self._opened = True
                try:
                    yield
                finally:
                    self._opened = False
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        finally:
            self._log.close()

    def _check_open(self) -> None:
        if not self._opened:
            raise RuntimeError("this supervisor is not open: use `async with Supervisor() as lab`")

    def _kept_machines(self) -> Keeper:
        self._check_open()
        if self._keeper is None:
            raise RuntimeError("this supervisor keeps no machines: make it with keep=True")
        return self._keeper
