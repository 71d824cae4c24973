"""Images that a snapshot was taken of: only to be read since, or what is above them is lost.

Whoever starts a machine from the spec of before the snapshot would write to the image below,
and the layer above it, with all that the guest has written since, would show nonsense.  So
the image says itself what is above it, in an extended attribute where the file system has
such; that is believed as long as the layer is there and says so too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import Fault
from qmpkit.host.findings import Problem
from qmpkit.host.headers import backing_path, read_header
from qmpkit.spec.machine import MachineSpec

__all__ = ["layer_above", "layered_problems", "mark_layered"]

_MARK = "user.qmpkit.layer"


def mark_layered(image: Path, layer: Path) -> None:
    """Note on *image* that *layer* is above it.  Blocking; nothing where that is not possible."""
    with suppress(OSError):
        os.setxattr(image, _MARK, os.fsencode(layer))


def layer_above(image: Path) -> Path | None:
    """The layer that *image* is below, as far as it is known.  Blocking."""
    try:
        layer = Path(os.fsdecode(os.getxattr(image, _MARK)))
        backing = read_header(layer).backing
        below = backing_path(layer, backing) if backing else None
        return layer if below is not None and below.samefile(image) else None
    except (OSError, ValueError):  # no such attribute, as a rule; or the layer is gone
        return None


def layered_problems(spec: MachineSpec) -> Iterator[Problem]:
    """A fault for each disk that would be written to below a layer.  Blocking."""
    for number, disk in enumerate(spec.disks):
        if disk.is_readonly or not disk.file or "\0" in disk.file:
            continue
        if (layer := layer_above(Path(disk.file))) is not None:
            message = (
                f"{disk.file!r} is what a snapshot holds: {str(layer)!r} is above it, "
                "and would be destroyed with all that was written since"
            )
            hint = (
                f"start the machine from the spec that it had last (file = {str(layer)!r}), "
                "or, if that is not wanted any more, remove it"
            )
            yield Problem(Fault(f"disks[{number}].file", message, hint))
