"""What a running machine is doing: one live line on a terminal, else a line a change."""

from __future__ import annotations

import math

import trio
from rich.live import Live
from rich.text import Text

from qmpkit.cli.talk import talk
from qmpkit.machine.state import State
from qmpkit.vm import VM

__all__ = ["Changes", "show_status"]

# Events that say no more than the state they lead to.
_PLAIN = ("RESUME", "STOP")
_STYLES = {State.RUNNING: "green", State.PANICKED: "bold red", State.FAILED: "bold red"}


class Changes:
    """A machine's changes of state, kept from the moment this is made."""

    def __init__(self, vm: VM) -> None:
        self._send, self.receive = trio.open_memory_channel[tuple[State, str]](math.inf)
        # Called in the machine's own task, so it must only leave a note.
        vm.machine.on_state = lambda state, cause: self._send.send_nowait((state, cause))


async def show_status(vm: VM, changes: Changes, hint: str) -> None:
    """Show the machine's state until cancelled; *hint* says what the person can do."""
    if talk.console.is_terminal:
        await _live(vm, hint)
    else:
        await _lines(vm, changes)


async def _live(vm: VM, hint: str) -> None:
    # The line carries a clock, so it is drawn once a second, not only at a change.
    with Live(
        console=talk.console,
        auto_refresh=False,  # no thread: the clock below does it
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,  # it would come back to us, since the console writes to sys.stderr
    ) as live:
        while True:
            live.update(_line(vm, hint), refresh=True)
            await trio.sleep(1)


async def _lines(vm: VM, changes: Changes) -> None:
    async for state, cause in changes.receive:
        if state is not State.GONE:
            why = "" if cause in _PLAIN else f" ({cause})"
            talk.note(f"{vm.name}: {state.value}{why}")


def _line(vm: VM, hint: str) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(vm.name, style="bold")
    line.append(f"  {vm.state.value}", style=_STYLES.get(vm.state, "yellow"))
    line.append(f"  {_clock(trio.current_time() - vm.machine.started_at)}")
    line.append(f"  {vm.accel}  pid {vm.pid}")
    line.append(f"  {hint}", style="dim")
    return line


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
