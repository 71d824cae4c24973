"""Between QEMU's greeting and the first instruction of its guest."""

from __future__ import annotations

from pathlib import Path

import attrs
import trio

from qmpkit.errors import LaunchFailed, MachineDied, MachineGone
from qmpkit.machine.drives import limit_drives
from qmpkit.machine.links import set_links
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import load_state, take_images_back
from qmpkit.machine.state_forms import OpenState

__all__ = ["get_ready"]


async def get_ready(machine: Machine) -> None:
    """Load the RAM that it goes on with, bound its drives, pull cables that are out.

    LaunchFailed when the RAM is not for this machine.
    """
    if machine.spec.resume_from is not None:
        cure = "have the machine as it was at the snapshot, or go back without its memory"
        state = await trio.to_thread.run_sync(OpenState.of, Path(machine.spec.resume_from))
        try:
            why = await load_state(machine, state)
        except (MachineDied, MachineGone) as ended:
            report = machine.report
            status = None if report is None else str(report.status)
            tail = machine.child.stderr_tail
            raise LaunchFailed(machine.name, machine.argv, status, tail, cure) from ended
        finally:
            state.close()
        if why:
            raise LaunchFailed(machine.name, machine.argv, None, why, cure)
        await take_images_back(machine)
        machine.loaded()
        machine.spec = attrs.evolve(machine.spec, resume_from=None)
    # QEMU's command line has no word for these.
    await limit_drives(machine, machine.spec)
    await set_links(machine)
