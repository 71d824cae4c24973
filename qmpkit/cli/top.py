"""`qmpkit top`: what the machines of a farm use, as it goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qmpkit.cli.choosing import meant
from qmpkit.cli.daemon import Daemon, farm_daemon
from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import chosen
from qmpkit.cli.safe import one_line
from qmpkit.cli.signals import as_ctrl_c
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import stdout_console, talk
from qmpkit.cli.top_rates import rates

__all__ = ["watch"]

_HEADINGS = ("NAME", "STATE", "CPU", "WAITED", "MEMORY", "READ/s", "WRITTEN/s", "IN/s", "OUT/s")


def watch(
    names: Sequence[str], farm: str | None, *, every: float, once: bool, as_json: bool
) -> int:
    """Show them until interrupted, or *once* over one interval; as JSON a line each time."""
    daemon = farm_daemon(farm)
    if names:
        chosen(daemon, names)  # a word that means none is told at once
    nothing = "none of these is up" if names else "no machine is up"
    samples = _samples(daemon, names, every)
    if once:
        found = next(samples)
        if as_json:
            print(json.dumps({"machines": found}))
        else:
            _print(found, nothing)
        return Exit.OK
    if as_json:
        for found in samples:
            print(json.dumps({"machines": found}), flush=True)
        return Exit.OK
    if (console := stdout_console()).is_terminal:
        _live(console, samples, nothing)
        return Exit.OK
    # Not drawn over one another: rich would print the last alone, at the end.
    with suppress(KeyboardInterrupt):
        for found in samples:
            _print(found, nothing)
            sys.stdout.flush()
    return Exit.OK


def _samples(daemon: Daemon, names: Sequence[str], every: float) -> Iterator[list[dict[str, Any]]]:
    """The rates of each interval, the first after one of them."""
    before = daemon.get("stats")["machines"]
    while True:
        time.sleep(every)
        now = daemon.get("stats")["machines"]
        known = [it["machine"] for it in now]
        # Those that are up: of the rest, or of one that goes meanwhile, there is nothing to show.
        wanted = {name for word in names for name in meant(word, known)} if names else known
        yield [it for it in rates(now, before) if it["machine"] in wanted]
        before = now


def _print(found: list[dict[str, Any]], nothing: str) -> None:
    if found:
        print_table(_HEADINGS, map(_row, found), prose=False)
    else:
        talk.note(nothing)


def _live(console: Console, samples: Iterator[list[dict[str, Any]]], nothing: str) -> None:
    try:
        with as_ctrl_c(), Live(Text("measuring …"), console=console, auto_refresh=False) as live:
            for found in samples:
                live.update(_table(found) if found else Text(nothing), refresh=True)
    except KeyboardInterrupt:
        return  # that is how it is ended
    finally:
        # However, and whenever, it is stopped: rich has begun to draw before it is entered.
        console.show_cursor()


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "NAME" else "right")
    for machine in found:
        table.add_row(*(Text(one_line(cell)) for cell in _row(machine)))
    return table


def _row(machine: dict[str, Any]) -> tuple[str, ...]:
    if machine["error"]:
        return (machine["machine"], machine["state"], *["-"] * 7)
    return (
        machine["machine"],
        machine["state"],
        _share(machine["cpu"]),
        _share(machine["waited"]),
        human_size(machine["memory"]),
        *(_size(machine[name]) for name in ("read", "written", "received", "sent")),
    )


def _share(processors: float | None) -> str:
    return "-" if processors is None else f"{processors * 100:.0f} %"


def _size(rate: float | None) -> str:
    return "-" if rate is None else human_size(round(rate))
