"""What the host layer found out, as far as a command line depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from qmpkit.spec.encryption import BaseImage

__all__ = ["Facts", "Flash"]


@attrs.frozen(kw_only=True)
class Flash:
    """The firmware that a `Uefi` turned out to be: its code, the store to begin with, formats."""

    code: str
    template: str
    code_format: str = "raw"
    store_format: str = "raw"


@attrs.frozen(kw_only=True)
class Facts:
    """The host's answers that `render` needs; everything else comes from the spec.

    `binary`: path of qemu-system-…; `accel`: the accelerator decided on;
    `cpu_flags`: appended to the CPU model (e.g. "-arch-capabilities");
    `run_with_user`: the binary has `-run-with user=` (9.1) in place of `-runas`.
    `flash`: for a machine with `Uefi`.
    `bases`: the images below those of encrypted disks, by the disk's id.
    """

    binary: str = "qemu-system-x86_64"
    accel: Literal["kvm", "tcg"] = "tcg"
    cpu_flags: tuple[str, ...] = ()
    run_with_user: bool = False
    flash: Flash | None = None
    bases: Mapping[str, tuple[BaseImage, ...]] = attrs.field(factory=dict)
