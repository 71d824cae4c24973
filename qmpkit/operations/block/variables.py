"""The UEFI variables of a machine, which go back with its disks.

QEMU has them in its memory as it has the RAM, and writes them to their file as the guest does:
a snapshot with RAM holds them, and one of the disks alone gets a copy.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import attrs
import trio

from qmpkit.errors import ImageFailed
from qmpkit.images.varstore import fill_store
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import variables_file

__all__ = ["copy_variables", "on_new_store", "store_of", "variables_copy"]


def store_of(spec: MachineSpec) -> str | None:
    """The file of the machine's own variables; None when it has none that last."""
    return spec.firmware.vars if isinstance(spec.firmware, Uefi) else None


def variables_copy(spec: MachineSpec, name: str, folder: Path | None) -> str | None:
    """The file for what the variables are at the snapshot *name*."""
    store = store_of(spec)
    if store is None:
        return None
    copy = Path(variables_file(_origin(spec), name)).name
    return str((folder or Path(store).parent).absolute() / copy)


async def copy_variables(spec: MachineSpec, target: str) -> None:
    """Fill *target* with them, safe on disk; the guest stands still, so they are whole.

    ImageFailed when that cannot be.
    """
    store = store_of(spec)
    assert store is not None
    try:
        await trio.to_thread.run_sync(fill_store, Path(target), Path(store))
    except OSError as error:
        raise ImageFailed(target, "copy the UEFI variables to", error.strerror or "") from error


def on_new_store(spec: MachineSpec, point: str) -> MachineSpec:
    """*spec* with its variables in a file that is not there yet.  Blocking."""
    assert isinstance(spec.firmware, Uefi)
    origin = _origin(spec)
    names = (variables_file(origin, f"{point}-{number}") for number in count(1))
    file = next(name for name in names if not os.path.lexists(name))
    return attrs.evolve(spec, firmware=attrs.evolve(spec.firmware, vars=file, origin=origin))


def _origin(spec: MachineSpec) -> str:
    assert isinstance(spec.firmware, Uefi)
    return spec.firmware.origin or spec.firmware.vars or ""
