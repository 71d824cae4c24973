"""`qmpkit run`: one machine, from its start to its report, at a person's terminal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.cli.chosen import Chosen, ImageOptions, chosen_machine
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.safe import one_line, shell_word
from qmpkit.cli.saved_folder import means_saved, restored_machine
from qmpkit.cli.signals import stop_signals
from qmpkit.cli.status import Changes, show_status
from qmpkit.cli.stopping import Stopper
from qmpkit.cli.talk import note_later, print_json, talk
from qmpkit.cli.terminal import enter_pressed, has_keyboard, tidy, without_echo
from qmpkit.errors import Fault, MachineDied, MachineGone, SpecInvalid
from qmpkit.machine.launch import LaunchOptions
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.operations.console_attach import AttachEnd
from qmpkit.operations.forwards import Forwarded
from qmpkit.process.rundir import machine_dir, socket_path
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import UserNic
from qmpkit.spec.sizes import format_size
from qmpkit.vm import VM

__all__ = ["Choosing", "Request", "nothing_to_boot", "report_to_dict", "run_machine"]

_GOOD = (ExitCause.GUEST_SHUTDOWN, ExitCause.GUEST_RESET, ExitCause.HOST_QUIT)
# Seconds that the guest's last words may take to be shown.
_LAST_OUTPUT = 2.0


@attrs.frozen(kw_only=True)
class Request:
    """The command line of `qmpkit run`, read."""

    word: str
    overrides: tuple[str, ...] = ()
    image: ImageOptions = attrs.field(factory=ImageOptions)
    headless: bool = False
    paused: bool = False
    grace: float = 30.0
    logs: Path | None = None
    tools_socket: Path | None = None
    as_json: bool = False


Choosing = Callable[[Request], AbstractAsyncContextManager[Chosen]]


@asynccontextmanager
async def _by_its_word(request: Request) -> AsyncIterator[Chosen]:
    is_saved = await trio.to_thread.run_sync(means_saved, request.word)
    chosen = restored_machine if is_saved else chosen_machine
    async with chosen(request.word, request.overrides, request.image) as it:
        yield it


async def run_machine(request: Request, choose: Choosing = _by_its_word) -> int:
    """Run the machine until it ends, print its report, return the exit status.

    *choose*: what makes a machine of the request's word.
    """
    report: ExitReport | None = None
    name = request.word
    with trio.open_signal_receiver(*stop_signals()) as signals, trio.CancelScope() as start:
        stopper = Stopper(start, request.grace)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopper.listen, signals)
            async with (
                shared_spawner(),  # for qemu-img before the start, too
                choose(request) as chosen,
            ):
                name = chosen.spec.name
                report = await _run(chosen, request, stopper)
            nursery.cancel_scope.cancel()
    if report is None:
        talk.error(f"{one_line(name)}: interrupted while it was starting")
        return Exit.INTERRUPTED
    return _conclude(report, request.as_json)


async def _run(chosen: Chosen, request: Request, stopper: Stopper) -> ExitReport:
    """From the start to the end of the machine."""
    spec = chosen.spec
    _make_log_directory(request.logs)
    async with (
        trio.open_nursery() as nursery,
        _tools_socket(request, spec.name) as tools,
    ):
        slow = trio.CancelScope()
        nursery.start_soon(note_later, f"{spec.name}: starting …", slow)
        options = LaunchOptions(tools_socket=tools)
        async with chosen.opened(options, request.logs) as vm:
            slow.cancel()
            stopper.attend(vm)
            await chosen.has_started()
            return await _Foreground(vm, chosen, request, tools, stopper).run()


@asynccontextmanager
async def _tools_socket(request: Request, name: str) -> AsyncIterator[Path]:
    """Where other programs reach the machine: as asked, else in the runtime directory."""
    if request.tools_socket is not None:
        await trio.to_thread.run_sync(_refuse_nowhere, request.tools_socket)
        yield request.tools_socket
        return
    async with machine_dir(name) as directory:
        yield socket_path(directory, "qmp")


def _refuse_nowhere(socket: Path) -> None:
    """Raise Refusal when there is no directory for the socket: it is the command line's mistake."""
    above = socket.absolute().parent
    if not above.is_dir():
        raise Refusal(f"--tools-socket {socket}: there is no directory {above}. Cure: create it")


def _make_log_directory(logs: Path | None) -> None:
    if logs is None:
        return
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{str(logs)!r} cannot be made: {error.strerror}"
        raise SpecInvalid([Fault("--logs", why)]) from error


class _Foreground:
    """A started machine and the terminal it is run from."""

    def __init__(
        self, vm: VM, chosen: Chosen, request: Request, tools: Path, stopper: Stopper
    ) -> None:
        self._vm = vm
        self._chosen = chosen
        self._request = request
        self._tools = tools
        self._stopper = stopper
        self._changes = Changes(vm)
        self._with_console = bool(vm.consoles) and not request.headless
        self._keyboard = has_keyboard()

    async def run(self) -> ExitReport:
        """Let the guest run and show it until it has ended."""
        self._introduce()
        await self._tell_forwards()
        if not self._request.paused:
            with suppress(MachineGone, MachineDied):  # the report tells
                await self._vm.resume()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._present)
            report = await self._vm.wait()
            # A terminal that nobody reads must not keep us.
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_OUTPUT
        return report

    def _introduce(self) -> None:
        vm, spec = self._vm, self._vm.spec
        plural = "" if spec.cpu.present == 1 else "s"
        size = f"{format_size(spec.memory.total)}, {spec.cpu.present} CPU{plural}"
        talk.note(f"{vm.name}: {spec.machine} with {vm.accel}, {size}, pid {vm.pid}")
        if nothing_to_boot(spec):
            talk.warn(f"{vm.name}: there is nothing to boot: no disk and no kernel")
            talk.note(f"{vm.name}: name a kernel (--set kernel.image=…), or disks in a file")
        if not vm.consoles and not self._request.headless:
            talk.note(f"{vm.name}: it has no serial console to attach")
        ask = f"qmpkit qmp {shell_word(self._tools)}"
        talk.note(f"{vm.name}: its monitor for other programs: {ask} …")
        if self._request.paused:
            talk.note(f"{vm.name}: paused before its first instruction; {ask} cont lets it run")

    async def _tell_forwards(self) -> None:
        if not any(isinstance(nic, UserNic) and nic.forwards for nic in self._vm.spec.nics):
            return
        with suppress(MachineGone, MachineDied):  # the report tells
            for forwarded in await self._vm.forwards():
                talk.note(f"{self._vm.name}: {self._way_in(forwarded)}")

    def _way_in(self, forwarded: Forwarded) -> str:
        host = "127.0.0.1" if forwarded.address == "0.0.0.0" else forwarded.address
        if (forwarded.proto, forwarded.guest_port) != ("tcp", 22):
            place = f"{forwarded.proto} port {forwarded.guest_port}"
            return f"{host}:{forwarded.port} leads to the guest's {place}"
        user = f"{self._chosen.user}@" if self._chosen.user else ""
        return f"once the guest is up: ssh -p {forwarded.port} {user or 'USER@'}{host}"

    async def _present(self) -> None:
        replay = True
        while self._with_console:
            match await self._attach(replay):
                case AttachEnd.ESCAPE:
                    if not await self._stand_by():
                        return
                    replay = False
                case AttachEnd.MACHINE:
                    return
                case AttachEnd.HANGUP:
                    self._stopper.hang_up()
                    break
        await self._stand_by()

    async def _attach(self, first: bool) -> AttachEnd:
        if first and self._keyboard:
            talk.note(f"{self._vm.name}: this is its console; Ctrl-] leaves it")
        talk.raw_terminal(self._keyboard)
        try:
            return await self._vm.console.attach(replay=first)
        finally:
            talk.raw_terminal(False)
            tidy(self._vm.console.output_bytes)

    async def _stand_by(self) -> bool:
        """Show the status until the machine ends; True when Enter asks for the console."""
        back = False
        way = "; Enter: console" if self._with_console and self._keyboard else ""
        with without_echo():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show_status, self._vm, self._changes, f"Ctrl-C: stop{way}")
                nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
                if way:
                    await enter_pressed()
                    back = True
                    nursery.cancel_scope.cancel()
        return back

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self._vm.wait()
        scope.cancel()


def nothing_to_boot(spec: MachineSpec) -> bool:
    """Would the firmware look in vain, on a console that it does not even write to?

    A firmware, a launcher or arguments of the user's own may know of something.
    """
    told = spec.disks or spec.firmware or spec.launcher or spec.extra_args
    kernel = spec.kernel is not None and spec.kernel.image is not None
    return not (told or kernel or any(nic.boot is not None for nic in spec.nics))


def _conclude(report: ExitReport, as_json: bool) -> int:
    status = Exit.OK if report.cause in _GOOD else Exit.FAILED
    if as_json:
        print_json(report_to_dict(report, status), compact=True)
    tell = talk.say if status is Exit.OK else talk.error
    tell(f"{report.machine}: {report}")
    return status


def report_to_dict(report: ExitReport, status: int) -> dict[str, Any]:
    """The exit report as `qmpkit run --json` prints it."""
    return {
        "machine": report.machine,
        "cause": report.cause.value,
        "expected": report.expected,
        "reason": report.reason,
        "uptime": round(report.uptime, 3),
        "status": {"code": report.status.code, "signal": report.status.signal},
        "panic": None if report.panic is None else dict(report.panic),
        "stderr_tail": report.stderr_tail,
        "exit_status": int(status),
    }
