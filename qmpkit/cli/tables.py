"""Tables and lines on stdout, of which nothing is cut off however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import stdout_console

__all__ = ["print_line", "print_table"]

_GAP = 2
_LEAST_TO_READ = 24  # columns, below which a sentence is a tower of words


def print_line(text: str) -> None:
    """A sentence about a table; only the terminal breaks it."""
    stdout_console().print(Text(one_line(text)), soft_wrap=True)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, prose: bool) -> None:
    """A line for each of *rows*; where that is too wide, a paragraph for each.

    *prose*: the last column is a sentence, which may be broken.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    console = stdout_console()
    if console.width < _least_width([headings, *cells], prose=prose):
        for row in cells:
            console.print(Text(_paragraph(headings, row)), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings, 1):
        table.add_column(heading, no_wrap=not (prose and place == len(headings)))
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _least_width(rows: Sequence[Sequence[str]], *, prose: bool) -> int:
    *fixed, last = (max(map(cell_len, column)) for column in zip(*rows, strict=True))
    last = min(last, _LEAST_TO_READ) if prose else last
    return sum(fixed) + _GAP * len(fixed) + last


def _paragraph(headings: Sequence[str], row: Sequence[str]) -> str:
    details = (f"  {head.lower()}: {cell}" for head, cell in zip(headings, row, strict=True))
    _, *others = details
    return "\n".join([row[0], *others])
