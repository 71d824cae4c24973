"""Backups of a daemon's machines: what a client may want, and how it is told of the way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.jobs import JobProgress
from qmpkit.server.answers import Refused
from qmpkit.server.bodies import Keys
from qmpkit.server.jobs import Step, Work
from qmpkit.spec.backups import point_to_dict
from qmpkit.vm import VM

__all__ = ["BACKUP_KEYS", "backup_work"]

On = Callable[[], AbstractAsyncContextManager[VM | AtRest]]

BACKUP_KEYS: Keys = {
    "folder": str,
    "mode": str,
    "compress": bool,
    "speed": int,
    "freeze": bool,
    "plain": bool,
    "compare": bool,
}
"""What `vm.backups.run` takes; the folder is one of the daemon's host, and absolute."""


def backup_work(on: On, wanted: dict[str, Any]) -> Work:
    """The job of a backup; its result is the point.  Raises Refused for a folder that is none.

    *on*: the machine as it runs, or its disks at rest.
    """
    folder = wanted.pop("folder", "")
    if not folder.startswith("/") or "\0" in folder:
        raise Refused(f"folder must be absolute, not {folder!r}")

    async def work(step: Step) -> dict[str, Any]:
        async with on() as machine:
            point = await machine.backups.run(folder, **wanted, progress=_Telling(step))
        return point_to_dict(point)

    return work


class _Telling:
    """A step for each per cent, of which a job keeps all."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._told: dict[str, Any] = {}

    def __call__(self, progress: JobProgress) -> None:
        percent = int(100 * progress.state.fraction)
        told = {"phase": progress.state.type, "percent": percent}
        if told != self._told:
            self._told = told
            self._step(told)
