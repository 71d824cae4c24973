"""The seeds of a farm's machines: what cloud-init reads at the first boot, one file each."""

from __future__ import annotations

from pathlib import Path

import attrs
import trio

from qmpkit.errors import HostLacks
from qmpkit.images.seed import make_seed
from qmpkit.spec.block import Disk
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.machine import MachineSpec

__all__ = ["seed_of", "seeded", "write_seed"]


def seeded(state_dir: Path, machine: FarmMachine) -> MachineSpec:
    """The spec with the machine's seed as its last disk; the file is `write_seed`'s.  Pure."""
    if machine.seed is None:
        return machine.spec
    # virtio-blk: cloud kernels often have no driver for a CD drive.
    disk = Disk(seed_of(state_dir, machine.name), format="raw", readonly=True)
    return attrs.evolve(machine.spec, disks=[*machine.spec.disks, disk])


async def write_seed(state_dir: Path, machine: FarmMachine, before: FarmMachine | None) -> None:
    """Write the seed unless that of *before* is there and the same; of a machine that is down.

    Raises HostLacks, and what `make_seed` does.
    """
    path = seed_of(state_dir, machine.name)
    try:
        if machine.seed is None:
            await trio.to_thread.run_sync(lambda: path.unlink(missing_ok=True))
            return
        same = before is not None and before.seed == machine.seed
        if same and await trio.to_thread.run_sync(path.exists):
            return
        await trio.to_thread.run_sync(_make_folder, path.parent)
    except OSError as error:  # of one machine: not to stop the others of its farm
        what = f"cannot write {path.parent}, the seeds of cloud-init: {error.strerror}"
        raise HostLacks(what, "free some space there, or make it writable") from error
    await make_seed(path, machine.seed, replace=True)


def seed_of(state_dir: Path, name: str) -> Path:
    """The file, which there may be.  Pure."""
    return state_dir / "seeds" / f"{name}.iso"


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
