"""A bar for what takes long: on a terminal it moves, elsewhere one line says what is done."""

from __future__ import annotations

from collections.abc import AsyncIterable

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import talk

__all__ = ["show_progress"]

_BAR_AND_NUMBERS = 56  # columns on the terminal


async def show_progress(what: str, fractions: AsyncIterable[float]) -> None:
    """Follow *fractions* (0.0 to 1.0) to their end under the words *what*."""
    if not talk.console.is_terminal:
        talk.note(f"{what} …")
        async for _ in fractions:
            pass
        return
    # Long names must not squeeze the bar out of a narrow terminal.
    room = max(20, talk.console.width - _BAR_AND_NUMBERS)
    words = Column(no_wrap=True, overflow="ellipsis", max_width=room)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=words),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=talk.console,
        transient=True,
        auto_refresh=False,  # no thread: each step draws it
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(one_line(what), total=1.0)
        async for fraction in fractions:
            bar.update(task, completed=fraction, refresh=True)
