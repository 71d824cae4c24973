"""A bar for what takes long: on a terminal it moves, elsewhere one line says what is done."""

from __future__ import annotations

from collections.abc import AsyncIterable

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from qmpkit.cli.talk import talk

__all__ = ["show_progress"]


async def show_progress(what: str, fractions: AsyncIterable[float]) -> None:
    """Follow *fractions* (0.0 to 1.0) to their end under the words *what*."""
    if not talk.console.is_terminal:
        talk.note(f"{what} …")
        async for _ in fractions:
            pass
        return
    columns = (
        TextColumn("{task.description}", markup=False),
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
        task = bar.add_task(what, total=1.0)
        async for fraction in fractions:
            bar.update(task, completed=fraction, refresh=True)
