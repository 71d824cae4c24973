"""All machines of a supervisor, where new ones get an entry and a task."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from qmpkit.machine.keep import Home
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.record import Record
from qmpkit.supervisor.tending import Tending

__all__ = ["Entries"]


@attrs.frozen
class Entries:
    """The `machines` by name, each made by `make` and looked after by a task of `tasks`."""

    machines: dict[str, Kept]
    make: Callable[[Record, Home], Kept]
    means: Means
    tasks: Tending
