"""The VM that users hold: thin fronts over one machine and the operations on it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.machine import Graces, Machine
from qmpkit.machine.report import ExitReport
from qmpkit.machine.state import State
from qmpkit.machine.state_forms import Form
from qmpkit.operations import keys, power, screen
from qmpkit.operations.agent import Agent
from qmpkit.operations.block.fronts import Backups, Snapshots
from qmpkit.operations.console import Console
from qmpkit.operations.forwards import Forwarded, forwarded_ports
from qmpkit.operations.hotplug.departures import follow_departures
from qmpkit.operations.hotplug.fronts import Devices, Disks, Nics
from qmpkit.operations.hotplug.resources import Cpus, GuestMemory
from qmpkit.operations.jobs import Progress
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.following import Migration, followed
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.operations.migration.migrate import in_the_way, migrate
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import SHARED, DiskPlaces
from qmpkit.operations.migration.transfer import Told
from qmpkit.operations.saved.saving import Saving, save
from qmpkit.operations.tune.fronts import Tune
from qmpkit.operations.tune.stats import Stats, stats_of
from qmpkit.process.logs import BoundedLog
from qmpkit.qmp.events import Subscription
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import SavedMachine

if TYPE_CHECKING:
    import qmpkit

__all__ = ["VM"]


class VM:
    """One running virtual machine; `qmpkit.running` and `Supervisor.start` make it.

    `disks`, `snapshots`, `nics`, `devices`, `cpus` and `memory` change it while it runs, and
    `spec` follows; `backups` copies its disks.  `tune` changes what it is given of its host.

    Every method that talks to QEMU raises MachineGone when the machine has ended in
    an orderly way, MachineDied when it ended out of the blue, and CommandRefused
    when QEMU says no.  A cancelled command has an unknown outcome; ask `state`.
    """

    def __init__(self, machine: Machine, *, logs: Path | None = None) -> None:
        self.machine = machine
        self.consoles: Mapping[str, Console] = {
            serial.name: self._open_console(serial.name, logs) for serial in machine.spec.serials
        }
        self._agent = self._open_agent()
        self.disks = Disks(machine, lambda: self.agent)
        self.nics = Nics(machine)
        self.devices = Devices(machine)
        self.cpus = Cpus(machine, lambda: self.agent)
        self.memory = GuestMemory(machine)
        machine.services.start_soon(
            follow_departures, machine, name=f"departures of {machine.name}"
        )
        self.snapshots = Snapshots(machine, self._frozen)
        self.backups = Backups(machine, self._frozen)
        self.tune = Tune(machine)

    def __repr__(self) -> str:
        return f"<VM {self.name!r} {self.state.value}>"

    @property
    def name(self) -> str:
        """The machine's name, as in its spec."""
        return self.machine.name

    @property
    def spec(self) -> MachineSpec:
        """The spec as it runs: versioned machine type, host variables expanded, changes made."""
        return self.machine.spec

    @property
    def accel(self) -> str:
        """The accelerator in use: "kvm" or "tcg"."""
        return self.machine.facts.accel

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.machine.child.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The exact command QEMU was started with."""
        return self.machine.argv

    @property
    def state(self) -> State:
        """What the machine is doing, kept true by QMP events and the process's end."""
        return self.machine.state

    @property
    def report(self) -> ExitReport | None:
        """How the machine ended; None while it lives."""
        return self.machine.report

    # Asking QEMU

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Send any QMP command and return what QEMU returned.

        *fds*: descriptors that go with it (`getfd`, `add-fd`); they stay the caller's.
        """
        return await self.machine.execute(command, arguments, fds=fds, oob=oob)

    def subscribe(
        self, *names: str, where: Mapping[str, Any] | None = None, buffer: int = 1000
    ) -> Subscription:
        """Follow QMP events of these *names* (all without any) whose data match *where*.

        A context manager and async iterator.  Reading more than *buffer* events too
        late raises EventsLost in this subscriber only; waiting for one when the machine
        has ended raises MachineGone or MachineDied.
        """
        return self.machine.subscribe(*names, where=where, buffer=buffer)

    async def stats(self, *, dirty_rate: float = 0.0, pss: bool = True) -> Stats:
        """What the machine has used so far: processor time, memory, disks, NICs; see `Stats`.

        Two of them give rates: `later.since(earlier)`.  With *dirty_rate* it also measures
        for that many whole seconds (1 to 60) how fast the guest changes its memory.  *pss*
        costs some 10 ms for each GiB of the guest.  Uses
        query-cpus-fast, query-iothreads, query-blockstats, query-balloon, query-stats and
        calc-dirty-rate, and /proc; the guest is not asked.
        """
        return await stats_of(self.machine, dirty_rate=dirty_rate, pss=pss)

    # Lifecycle

    async def wait(self) -> ExitReport:
        """Wait for the machine's end, whatever brings it, and tell how it ended."""
        return await self.machine.wait()

    async def wait_running(self) -> None:
        """Wait until the guest's vCPUs run; MachineGone or MachineDied when it ends first."""
        await self.machine.reached(State.RUNNING)

    async def pause(self) -> None:
        """Stop the guest's vCPUs (QMP `stop`); returns when they stand."""
        await power.pause(self.machine)

    async def resume(self) -> None:
        """Let the guest's vCPUs run (QMP `cont`); returns when they do."""
        await power.resume(self.machine)

    def paused(self) -> AbstractAsyncContextManager[None]:
        """`async with vm.paused():` the guest stands still within, and runs again after."""
        return power.paused(self.machine)

    async def reset(self) -> None:
        """Press the reset button (QMP `system_reset`); returns when QEMU has reset."""
        await power.reset(self.machine)

    async def powerdown(self, *, by: str = "acpi") -> None:
        """Ask the guest to shut down and return at once; *by* is "acpi" or "agent"."""
        await power.powerdown(self.machine, self._asker(by))

    async def shutdown(
        self, *, grace: float = 60.0, by: str = "acpi", escalate: bool = True
    ) -> ExitReport:
        """Ask the guest to shut down; end QEMU when it has not within *grace* seconds.

        With `escalate=False` a guest that does not obey raises GuestRefused instead
        and goes on running.  *by* is "acpi" (the power button) or "agent".  A guest
        that stands still cannot obey: it is ended, or refused, at once.
        """
        ask = self._asker(by)
        return await power.shutdown(self.machine, grace=grace, ask=ask, escalate=escalate)

    async def quit(self, graces: Graces | None = None) -> ExitReport:
        """End QEMU at once, in order: `quit`, SIGTERM, SIGKILL.  The guest is not asked.

        *graces*: seconds for each step; default: those of `LaunchOptions`.
        """
        return await self.machine.stop(graces)

    async def kill(self) -> ExitReport:
        """End QEMU with SIGKILL; what it had not written is lost."""
        return await self.machine.kill()

    # Moving

    async def migrate(
        self,
        destination: Incoming,
        *,
        policy: str | Policy = "live",
        options: MigrationOptions | None = None,
        progress: Told | None = None,
    ) -> Migrated:
        """Move the guest to another QEMU, while it runs; this one has ended when it returns.

        *destination* comes from `qmpkit.receiving`, and `destination.vm` is the machine then.
        *policy*, for a guest that writes faster than its memory is sent: "live" slows it down
        and lets it stand still longer, up to `options.max_downtime`; "fast" stops it after
        five seconds; "postcopy" runs it there after one pass, and its memory follows; or a
        function from a `Round` to a `Step`, which QEMU slows it down for too.  `qmpkit.live`,
        `fast` and `postcopy` make these policies with other numbers.  *options*: what the memory
        goes through, and how fast.  *progress* is told of each look, twice a second.

        Disks that the destination is to have images of its own for are mirrored there first,
        at `options.max_bandwidth` together, and kept alike until the guest changes over; the
        policy is asked from the memory on.  The bitmaps of backups go along.  The old images
        stay, for you to delete.  Whatever else would change the machine meanwhile is refused:
        MachineMoving.

        Raises CannotMigrate with all that is in the way, before anything is done.  Whatever
        goes wrong then, also a cancellation or the end of either QEMU, the guest runs on here
        with its disks, and the destination has ended: MigrationFailed.  Only when QEMU ended
        while it was told to go on there, nobody knows, and neither runs: MigrationUnknown; new
        images are the ones to go on with then, and stay.

        With postcopy nothing leads back once the guest is to run there.  A connection that is
        cut is made anew, within `options.recover_within` seconds; a cancellation waits for the
        rest, up to `options.finish_within`.  After that, or when an end dies, the guest is lost
        and both have ended: MigrationLost.  When the switch itself fails, its QEMU may neither
        migrate again nor be saved before a new start: MigrationFailed says so.  Nobody
        has `destination.vm` before all is there.
        (`migrate-incoming`, `migrate`, `migrate-continue`, `cont`; `migrate-start-postcopy`,
        `migrate-pause`, `yank`, `migrate-recover`; for disks `nbd-server-start`,
        `block-export-add`, `blockdev-mirror`; QEMU 7.2.)
        """
        end = LocalEnd(destination)
        return await migrate(self.machine, end, policy=policy, options=options, told=progress)

    def migrating(
        self,
        destination: Incoming,
        *,
        policy: str | Policy = "live",
        options: MigrationOptions | None = None,
    ) -> AbstractAsyncContextManager[Migration]:
        """`async with vm.migrating(there) as migration: async for now in migration: …`

        As `migrate`, and each look at it, a `Round`, can be read until it is over.  The end of
        the block waits for that; a block that fails, or is cancelled, leaves the guest here, unless
        it is on its way by postcopy already.
        """

        def done(told: Told) -> Awaitable[Migrated]:
            end = LocalEnd(destination)
            return migrate(self.machine, end, policy=policy, options=options, told=told)

        return followed(done)

    async def migration_faults(
        self,
        *,
        qemu: str | os.PathLike[str] | None = None,
        disks: DiskPlaces = SHARED,
        collapse: bool = False,
    ) -> tuple[Fault, ...]:
        """All that is in the way of its migrating on this host, to another *qemu* too; () is fine.

        *disks*, *collapse* as for `receiving`.  Nothing is started: whether the processors are
        the same is seen by `migrate`.
        """
        return await in_the_way(self.machine, qemu, disks, collapse=collapse)

    async def save(
        self,
        path: Path | str,
        *,
        copy_disks: bool = False,
        go_on: bool = False,
        ram: Form = "plain",
        progress: Progress | None = None,
    ) -> SavedMachine:
        """Save RAM, devices and disks of this moment in the new folder *path*, and end the machine.

        `qmpkit.restored` has it go on from there, also after a reboot of the host.  The disks
        stay where they are, and nobody may write to them meanwhile: that is found out.  With
        *copy_disks* the folder has copies of those that the guest can write to (qcow2, whole,
        in clear), of all that is in a clone's template, and of kernel, initrd and firmware but
        for the host's UEFI; and the machine may *go_on* afterwards; the guest stands still until
        all is written.  UEFI variables are in the folder in either case.

        *ram*: "plain" as QEMU writes it; "packed" by zstd, a third to a fifth of that, at the
        speed of a processor; "mapped", each page at its place, which several threads write
        and read (QEMU 9.0).  *progress* is told of the RAM, then of the checksums.

        The folder (0700) is there when it is whole and safe on disk.  Failed or cancelled
        before that, nothing of it is left and the guest goes on.  Uses stop, migrate,
        query-version; cont or quit.  Raises SpecInvalid with all that is wrong (a kept machine
        is saved by `Supervisor.save`, a clone's disks are copied), JobFailed and ImageFailed (no
        space), CommandRefused for devices that cannot be saved.
        """
        how = Saving(copy_disks=copy_disks, ram=ram, progress=progress)
        return await save(self.machine, Path(path), how, go_on_after=go_on)

    async def to_template(
        self,
        path: Path | str,
        *,
        services: Sequence[str] = (),
        drop_caches: bool = False,
        twins: bool = False,
    ) -> qmpkit.Template:
        """Save the machine as a template at *path*, which is new, and end it.

        It is `qmpkit.to_template`, where all of it is told.
        """
        import qmpkit  # the package's offer: templates make VMs, so they stand above this

        return await qmpkit.to_template(
            self, path, services=services, drop_caches=drop_caches, twins=twins
        )

    # The guest

    @property
    def console(self) -> Console:
        """The first serial console; `consoles` has all of them, by their names."""
        for console in self.consoles.values():
            return console
        raise self._lacks("serials", "it has no serial console", "add `serials = 1`")

    @property
    def agent(self) -> Agent:
        """The QEMU guest agent in the guest."""
        if self._agent is None:
            raise self._lacks("agent", "it has no guest agent channel", "add `agent = true`")
        return self._agent

    async def screenshot(self, path: Path | str | None = None) -> bytes:
        """The guest's screen as PNG bytes, also written to *path* when given (QEMU 7.1+)."""
        return await screen.screenshot(self.machine, path)

    async def send_keys(self, *chords: str) -> None:
        """Press key chords such as "ctrl-alt-delete" or "ret", one after another."""
        await keys.send_keys(self.machine, *chords)

    async def type_text(self, text: str) -> None:
        """Type *text* on the guest's keyboard (US layout)."""
        await keys.type_text(self.machine, text)

    async def forwards(self) -> tuple[Forwarded, ...]:
        """The ports of this host that lead into the guest, with those that QEMU chose (host 0)."""
        return await forwarded_ports(self.machine)

    def _frozen(self) -> AbstractAsyncContextManager[int]:
        return self.agent.frozen()

    def _asker(self, by: str) -> power.AskGuest | None:
        match by:
            case "acpi":
                return None
            case "agent":
                return self.agent.shutdown
        raise ValueError(f'by={by!r}: a guest is asked by "acpi" or by "agent"')

    def _lacks(self, path: str, message: str, hint: str) -> SpecInvalid:
        return SpecInvalid([Fault(path, message, hint)], source=f"machine {self.name!r}")

    def _open_console(self, channel: str, logs: Path | None) -> Console:
        log = None if logs is None else BoundedLog(logs / f"{channel}.log")
        stream = self.machine.streams[channel]
        console = Console(
            stream, name=self.name, channel=channel, log=log, verdict=self.machine.verdict
        )
        self.machine.services.start_soon(console.run, name=f"{channel} of {self.name}")
        return console

    def _open_agent(self) -> Agent | None:
        stream = self.machine.streams.get("agent")
        if stream is None:
            return None
        machine = self.machine
        agent = Agent(stream, name=self.name, monitor=machine, verdict=machine.verdict)
        self.machine.services.start_soon(agent.serve, name=f"agent of {self.name}")
        return agent
