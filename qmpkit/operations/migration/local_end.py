"""The destination of a migration whose machine is in this program."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from os.path import samestat
from pathlib import Path

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.links import hear
from qmpkit.machine.machine import Expected, Machine
from qmpkit.machine.saved_state import take_images_back
from qmpkit.machine.state import State
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.end import Able, Ports, able_of, tell
from qmpkit.operations.migration.errors import MigrationFailed, MigrationUnknown
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.mirrors import set_bitmaps
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.postcopy import cut, listened
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.storage_there import Door, ends_serving, serves
from qmpkit.operations.migration.transfer import loaded
from qmpkit.operations.migration.ways import Route, laid, laid_again, listen
from qmpkit.operations.ports import change_forwards
from qmpkit.operations.power import resume
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.process.rundir import machine_dir, socket_path
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription

__all__ = ["LocalEnd", "LocalRest"]

_SOCKET = "disks"
_LOADED = ("paused", "prelaunch")
_CURE = "do without postcopy, or let QEMU have userfaultfd: `sysctl vm.unprivileged_userfaultfd=1`"


class LocalEnd:
    """An `End` that is *incoming*."""

    def __init__(self, incoming: Incoming) -> None:
        if not isinstance(incoming, Incoming):  # QEMU's own command takes an address
            hint = "async with qmpkit.receiving(vm) as there: await vm.migrate(there)"
            raise SpecInvalid([Fault("destination", f"cannot be {incoming!r}", hint)])
        self.incoming = self._incoming = incoming
        self._machine = incoming.machine
        self.moves = incoming.moves
        self.collapse = incoming.collapse
        self.cables = incoming.cables
        self.pauses = bool(incoming.cables)
        self._able: Able | None = None
        self._arrivals: Subscription
        self._resumes: Subscription
        self._awake: Expected

    def must_wait(self) -> None:
        """See `End`."""
        self._incoming.must_wait()

    def take(self) -> None:
        """See `End`."""
        self._incoming.take()

    def has_ended(self) -> MigrationFailed:
        """See `End`."""
        return self._incoming.has_ended()

    def is_like(self, source: Machine) -> bool:
        """See `End`.  A package's update leaves the path, and puts another file there."""
        ends = (self._machine, source)
        ours, theirs = (_processor(it) for it in ends)
        if ours != theirs:
            return False
        try:
            return samestat(*(Path(f"/proc/{it.child.pid}/exe").stat() for it in ends))
        except OSError:  # one has ended
            return False

    async def able(self, *, words: bool) -> Able:
        """See `End`."""
        self._able = await able_of(self._machine, words=words)
        return self._able

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See `End`."""
        machine = self._machine
        with (
            machine.subscribe("MIGRATION") as self._arrivals,
            machine.subscribe("RESUME") as self._resumes,
            machine.expecting(State.RUNNING, State.SUSPENDED) as self._awake,
        ):
            yield

    async def set_up(
        self, setting: Setting, options: MigrationOptions, moves: Sequence[DiskMove]
    ) -> None:
        """See `End`."""
        assert self._able is not None, "which is asked before"
        await tell(self._machine, setting, options, self._able)
        await set_bitmaps(self._machine, moves, {move.id: move.node for move in moves})

    @asynccontextmanager
    async def served(self, source: Machine) -> AsyncIterator[Door]:
        """See `End`: by a socket of this host."""
        async with machine_dir(source.name) as folder:
            door = Door(server={"type": "unix", "path": str(socket_path(folder, _SOCKET))})
            await serves(self._machine, self.moves, door)
            yield door

    async def alike(self) -> None:
        """See `End`.  From here on a start is right with the new images, whoever dies."""
        await ends_serving(self._machine)
        if self._incoming.on_record is not None:
            await self._incoming.on_record.make_sure()

    def laid(
        self, options: MigrationOptions, source: Machine, *, mapped: bool
    ) -> AbstractAsyncContextManager[Route]:
        """See `End`."""
        return laid(options, source, self._machine, mapped=mapped)

    async def load(self, uri: str) -> None:
        """See `End`."""
        await listen(self._machine, uri)

    async def loaded(self) -> None:
        """See `End`."""
        await loaded(self._machine, self._arrivals)

    async def examine(self) -> None:
        """See `End`: it has not panicked or powered off on its way."""
        status = (await self._machine.execute("query-status"))["status"]
        if status not in _LOADED:
            raise MigrationFailed(self._machine.name, f"its guest is in the state {status!r}")

    async def open_ports(self, ports: Ports) -> None:
        """See `End`."""
        for nic, forwards in ports.items():
            await change_forwards(self._machine, self._machine.name, nic, forwards)
        await hear(self._machine, self.cables)

    async def run(self, *, runs: bool) -> float | None:
        """See `End`."""
        machine = self._machine
        machine.must_live("being told to run")  # one that has ended before has never run
        if not runs:
            machine.loaded()
            await take_images_back(machine)
            self._incoming.keep_images()
            return None
        try:
            with trio.fail_after(STEP_GRACE):
                await self._told_to_run()
        except (*LOST, trio.TooSlowError) as lost:
            self._incoming.keep_images()
            await machine.kill()
            raise MigrationUnknown(machine.name, _how_lost(lost)) from lost
        self._incoming.keep_images()
        return _when(self._resumes)

    async def _told_to_run(self) -> None:
        await self._machine.execute("cont")
        await self._awake.wait()

    def arrived(self) -> None:
        """See `End`."""
        self._incoming.keep_images()
        self._machine.spec = self._incoming.spec
        self._incoming.arrived.set()

    def rest(self) -> LocalRest:
        """See `End`."""
        return LocalRest(self._machine, self._incoming)

    async def discard(self, *, patience: float) -> str:
        """See `End`."""
        with trio.move_on_after(patience):  # it may know why
            await self._machine.wait()
        report = self._machine.report
        await self._machine.kill()
        await self._incoming.discard_images()
        if report is None:
            return ""
        silent = f"nothing, and its QEMU has ended ({report.status})"
        return self._machine.child.stderr_tail.strip() or silent


def _processor(machine: Machine) -> tuple[object, ...]:
    """What of its spec decides what its processor shows the guest."""
    spec = machine.spec
    return spec.machine, spec.machine_options, machine.facts.accel, spec.cpu, spec.extra_args


class LocalRest:
    """A `Rest` of a guest that comes to *machine*; *incoming* is None for one found again."""

    def __init__(self, machine: Machine, incoming: Incoming | None = None) -> None:
        self._machine = machine
        self._incoming = incoming

    async def refusals(self, setting: Setting) -> tuple[Fault, ...]:
        """See `Rest`."""
        try:
            await self._machine.execute("migrate-set-capabilities", {"capabilities": setting})
        except CommandRefused as refused:
            said = self._machine.child.stderr_tail.strip()
            message = f"the destination refuses it: {refused.desc}"
            return (Fault("policy", f"{message} ({said})" if said else message, _CURE),)
        return ()

    def begins(self) -> None:
        """See `Rest`."""

    def switched(self) -> None:
        """See `Rest`."""
        if self._incoming is not None:
            self._incoming.has_switched = True
            self._incoming.keep_images()  # it is about to write to them, lost or not

    async def listen(self, heard: Callable[[str | None], None]) -> None:
        """See `Rest`."""
        await listened(self._machine, heard)

    def unheard(self) -> float:
        """See `Rest`: a connection within one host ends with who has it."""
        return 0.0

    async def run(self) -> float | None:
        """See `Rest`."""
        self._machine.loaded()
        return await _ran(self._machine)

    async def cut(self) -> None:
        """See `Rest`."""
        await cut(self._machine)

    def laid_again(
        self, options: MigrationOptions, route: Route | None, source: Machine
    ) -> AbstractAsyncContextManager[str]:
        """See `Rest`."""
        return laid_again(options, route, source, self._machine)

    def last_words(self) -> str:
        """See `Rest`."""
        return self._machine.child.stderr_tail.strip()


async def _ran(machine: Machine) -> float | None:
    """Run its guest; when it did, by `time.monotonic()`."""
    with machine.subscribe("RESUME") as resumes:
        await resume(machine)
        return _when(resumes)


def _when(events: Subscription) -> float | None:
    first = events.next_nowait()
    return None if first is None else first.monotonic


def _how_lost(lost: Exception) -> str:
    if isinstance(lost, trio.TooSlowError):
        return f"which did not answer for {STEP_GRACE:g} s"
    return f"which ended: {lost}"
