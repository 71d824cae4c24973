"""A bar for what takes long: on a terminal it moves, elsewhere one line says what is done."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from qmpkit.cli.safe import one_line
from qmpkit.cli.sizes import human_size
from qmpkit.cli.talk import talk

__all__ = ["Advance", "show_progress", "shown", "transfer"]

Advance = Callable[[int, int | None], None]
"""Called with the bytes that have gone over, and how many there are, None when nobody knows."""

_DRAWN_EVERY = 0.1
_TOLD_EVERY = 10.0

_BAR_AND_NUMBERS = 56  # columns on the terminal


async def show_progress(what: str, fractions: AsyncIterable[float]) -> None:
    """Follow *fractions* (0.0 to 1.0) to their end under the words *what*."""
    if not talk.console.is_terminal:
        talk.note(f"{what} …")
        async for _ in fractions:
            pass
        return
    with _bar(TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(one_line(what), total=1.0)
        async for fraction in fractions:
            bar.update(task, completed=fraction, refresh=True)


@contextmanager
def shown(what: str) -> Iterator[Callable[[float], object]]:
    """What it gives is to be called with the fraction that is done, 0.0 to 1.0."""
    if not talk.console.is_terminal:
        talk.note(f"{what} …")
        yield lambda _: None
        return
    with _bar(TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(one_line(what), total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction, refresh=True)


@contextmanager
def transfer(what: str) -> Iterator[Advance]:
    """Show how many bytes have gone over; where no terminal is, a line now and then."""
    if talk.console.is_terminal:
        with _bar(DownloadColumn(binary_units=True), TransferSpeedColumn()) as bar:
            yield _drawing(bar, what)
    else:
        yield _telling(what)


def _drawing(bar: Progress, what: str) -> Advance:
    task, drawn = bar.add_task(one_line(what), total=None), 0.0

    def advance(done: int, total: int | None) -> None:
        nonlocal drawn
        refresh = time.monotonic() - drawn > _DRAWN_EVERY
        drawn = time.monotonic() if refresh else drawn
        bar.update(task, completed=done, total=total, refresh=refresh)

    return advance


def _telling(what: str) -> Advance:
    told = time.monotonic()

    def advance(done: int, total: int | None) -> None:
        nonlocal told
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            whole = "" if total is None else f" of {human_size(total)}"
            talk.note(f"{what}: {human_size(done)}{whole} so far")

    return advance


def _bar(*numbers: ProgressColumn) -> Progress:
    # Long names must not squeeze the bar out of a narrow terminal.
    room = max(20, talk.console.width - _BAR_AND_NUMBERS)
    words = Column(no_wrap=True, overflow="ellipsis", max_width=room)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=words),
        BarColumn(),
        *numbers,
        console=talk.console,
        transient=True,
        auto_refresh=False,  # no thread: each step draws it
        redirect_stdout=False,
        redirect_stderr=False,
    )
