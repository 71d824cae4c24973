"""The status table: one row a machine, a snapshot without asking QEMU."""

from __future__ import annotations

import attrs

__all__ = ["Row"]


@attrs.frozen
class Row:
    """What a supervisor knows of one machine.

    `since` is the seconds it has been in `state`, `cause` what brought it there;
    `pid` and `accel` are None until QEMU has started.
    """

    machine: str
    state: str
    since: float
    cause: str
    pid: int | None = None
    accel: str | None = None
