"""The status table: one row a machine, a snapshot without asking QEMU."""

from __future__ import annotations

import attrs

__all__ = ["Row"]


@attrs.frozen
class Row:
    """What a supervisor knows of one machine.

    `since` is the seconds it has been in `state`, `cause` what brought it there;
    `pid` and `accel` are None until QEMU has started.  `declared` is what is wanted of a
    kept machine, None for one that ends with its block; `health` what its checks have come
    to: "starting", "healthy", "unhealthy", None for one without checks.
    """

    machine: str
    state: str
    since: float
    cause: str
    pid: int | None = None
    accel: str | None = None
    declared: str | None = None
    health: str | None = None
