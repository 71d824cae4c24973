"""The farm as it was declared last, in the supervisor's state directory: `farm.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import trio

from qmpkit.errors import HostLacks, JournalFailed, QmpkitError
from qmpkit.process.durable import write_durably
from qmpkit.process.roots import DECLARED
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_data import farm_from_dict, farm_to_dict

__all__ = ["read_farm", "save_farm"]

_SIZE_LIMIT = 64 << 20


async def save_farm(state_dir: Path, farm: Farm | None) -> None:
    """Write *farm* there, safely; None forgets it.  Raises JournalFailed."""
    text = None if farm is None else json.dumps(farm_to_dict(farm), indent=1)
    path = state_dir / DECLARED
    try:
        await trio.to_thread.run_sync(write_durably, path, text)
    except OSError as error:
        raise JournalFailed(str(path), error.strerror or str(error)) from error


async def read_farm(state_dir: Path) -> Farm | None:
    """The farm that is on record there; None without one.

    Raises HostLacks when it cannot be read: nothing is guessed of what was declared.
    """
    path = state_dir / DECLARED
    try:
        text = await trio.to_thread.run_sync(_read, path)
        if text is None:
            return None
        plain: dict[str, Any] = json.loads(text)
        return farm_from_dict(plain, source=os.fspath(path))
    except (OSError, ValueError, AttributeError, QmpkitError) as error:
        what = f"cannot read {path}, the farm as it was declared last: {error}"
        raise HostLacks(what, "`qmpkit up` with the farm's file writes it anew") from error


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_SIZE_LIMIT)
    except FileNotFoundError:
        return None
