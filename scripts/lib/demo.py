"""What `scripts/demo` shows: a few Linux machines under one supervisor.

One profile, one base image, an overlay each: they boot, answer, pause, resume,
show their screen; one is killed and reported; the rest are stopped in order.
`--guest debian` does it with Debian on its own disk instead of the tiny guest.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio
from demo_guests import GUESTS, Guest
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

import qmpkit
from qmpkit import VM, MachineSpec, Supervisor
from qmpkit._paths import cache_dir

out = Console()


class Steps:
    """What was done and how long each step took, in seconds."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.done.append((what, took))
        out.print(f"[green]✔[/green] {what} [dim]{took:.2f} s[/dim]")

    def table(self) -> Table:
        table = Table("step", "seconds", title="What each step took", title_justify="left")
        table.columns[1].justify = "right"
        for what, took in self.done:
            table.add_row(what, f"{took:.2f}")
        table.add_row("in all", f"{time.monotonic() - self.begun:.2f}", style="bold")
        return table


def status(lab: Supervisor) -> Table:
    """The supervisor's table as a person reads it."""
    colours = {"running": "green", "paused": "yellow", "gone": "red", "failed": "red"}
    table = Table("machine", "state", "for", "pid", "accel", "cause", box=None, pad_edge=False)
    for row in lab.table():
        table.add_row(
            row.machine,
            Text(row.state, style=colours.get(row.state, "")),
            f"{row.since:.1f} s",
            str(row.pid or "-"),
            row.accel or "-",
            row.cause,
        )
    return table


@asynccontextmanager
async def shown_live(lab: Supervisor) -> AsyncIterator[None]:
    """Within the block the table follows every change; without a terminal, a line a change."""
    async with trio.open_nursery() as nursery:
        with lab.subscribe() as happenings:
            nursery.start_soon(_show, lab, happenings)
            yield
            nursery.cancel_scope.cancel()


async def _show(lab: Supervisor, happenings: qmpkit.Happenings) -> None:
    if not out.is_terminal:
        async for change in happenings:
            out.print(f"    {change.machine}: {change.state} ({change.cause})")
        return
    with Live(console=out, auto_refresh=False) as live:
        while True:
            live.update(status(lab), refresh=True)
            with trio.move_on_after(0.5):  # the seconds in the table move on by themselves
                if await anext(happenings, None) is None:
                    return


async def start_all(lab: Supervisor, machines: list[MachineSpec]) -> None:
    async with trio.open_nursery() as nursery:
        for spec in machines:
            nursery.start_soon(lab.start, spec)


async def each(lab: Supervisor, action: Callable[[VM], Awaitable[None]]) -> None:
    """Do *action* to every machine, all at the same time."""
    async with trio.open_nursery() as nursery:
        for vm in lab.machines.values():
            nursery.start_soon(action, vm)


async def ready(vm: VM) -> None:
    await vm.agent.wait_ready()


async def greet(guest: Guest, vm: VM) -> None:
    out.print(f"    {vm.name}: {await guest.greet(vm)}")


async def main(guest: Guest) -> None:
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="qmpkit-demo-") as name:
        folder = Path(name)
        machines = await guest.specs(folder)
        async with Supervisor("demo") as lab:
            async with shown_live(lab):
                with steps.step("started the first machine"):
                    await lab.start(machines[0])
                with steps.step(f"started {len(machines) - 1} more"):
                    await start_all(lab, machines[1:])
                with steps.step("all have booted, their agents answer"):
                    await each(lab, ready)
            with steps.step("ran a command in each by the guest agent"):
                await each(lab, partial(greet, guest))
            first, last = (lab.machines[machines[place].name] for place in (0, -1))
            if guest.log_in is not None:
                with steps.step(f"logged in to {first.name} by ssh"):
                    said = await guest.log_in(first, folder)
                out.print(f"    {said}")
            await one_machine(first, steps)
            with steps.step(f"killed {last.name} with SIGKILL"):
                os.kill(last.pid, signal.SIGKILL)
                report = await last.wait()
            out.print(f"    {report.machine}: {report}")
            with steps.step("asked the rest to power down, in order"):
                await lab.stop(powerdown_grace=30)
            out.print(status(lab))
    out.print(steps.table())


async def one_machine(vm: VM, steps: Steps) -> None:
    """Pause, resume and picture it."""
    with steps.step(f"paused {vm.name}"):
        await vm.pause()
    out.print(f"    {vm.name}: {vm.state.value}")
    with steps.step(f"resumed {vm.name}"):
        await vm.resume()
    with steps.step(f"typed on the keyboard of {vm.name} and took a screenshot"):
        await vm.type_text("echo hello from qmpkit\n")
        picture = cache_dir() / "demo.png"
        await vm.screenshot(picture)
    out.print(f"    {picture}")


class Once(logging.Filter):
    """Shows a warning that every machine has for the first one only."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.args[1:] if isinstance(record.args, tuple) else ()
        new = told not in self.shown
        self.shown.add(told)
        return new or not told


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def chosen() -> Guest:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--guest", choices=sorted(GUESTS), default="tiny", help="default: tiny")
    return GUESTS[parser.parse_args().guest]


if __name__ == "__main__":
    guest = chosen()
    to_screen = RichHandler(console=out, show_time=False, show_path=False)
    to_screen.addFilter(Once())
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[to_screen])
    code = 0
    try:
        trio.run(main, guest)
    # In a group as well as alone: the nurseries of main() wrap what their tasks raise.
    except* qmpkit.QmpkitError as group:
        for error in leaves(group):
            print(f"scripts/demo: {error}", file=sys.stderr)
        code = 1
    except* KeyboardInterrupt:
        print("scripts/demo: interrupted; every machine has been ended", file=sys.stderr)
        code = 130
    sys.exit(code)
