"""What a machine boots by: QEMU's own firmware, a BIOS file, or UEFI in flash."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.boards import Board

__all__ = ["UEFI", "Firmware", "Uefi", "firmware_faults", "to_firmware"]

UEFI = "uefi"
"""What people write for `Uefi()`; a file of that name is "./uefi"."""


def _optional_path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


@attrs.frozen
class Uefi:
    """UEFI in flash: code that machines share, and a store of variables for each.

    `code` None is the host's firmware for this architecture, found by QEMU's firmware
    descriptors (Debian: ovmf, qemu-efi-aarch64). `template`: the empty store; None is
    the one that belongs to `code`. `vars`: this machine's own store, copied from
    `template` when it is missing, never over an existing file; None is a private one
    that ends with the machine. `secure_boot`: code and template that run only what is
    signed by the enrolled keys, on q35 guarded by SMM; files that are known to run
    anything are refused. `origin`: the store that its owner wrote here, when a revert has put
    another in its place.
    """

    code: str | None = attrs.field(default=None, converter=_optional_path)
    template: str | None = attrs.field(default=None, converter=_optional_path)
    vars: str | None = attrs.field(default=None, converter=_optional_path)
    secure_boot: bool = False
    origin: str | None = None


Firmware = str | Uefi | None


def to_firmware(value: str | os.PathLike[str] | Uefi | None) -> Firmware:
    """The text "uefi" is `Uefi()`; any other text or path is a file for `-bios`."""
    if value is None or isinstance(value, Uefi):
        return value
    if isinstance(value, str):
        return Uefi() if value == UEFI else value
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return f"./{path}" if path == UEFI else path
    raise SpecInvalid([Fault("firmware", f"cannot be {value!r}", f'"{UEFI}", or a BIOS file')])


def firmware_faults(uefi: Uefi, board: Board) -> Iterator[Fault]:
    """Everything that contradicts itself in `uefi`, or is not for that board."""
    if not board.flash:
        yield Fault("firmware", f"{board.name} has no flash for UEFI", 'machine = "q35"')
    paths = {"code": uefi.code, "template": uefi.template, "vars": uefi.vars}
    for name, path in paths.items():
        if path == "":
            yield Fault(f"firmware.{name}", "the path is empty")
    if uefi.template is not None and uefi.code is None:
        message = "an empty store is of use only to the code it belongs to"
        yield Fault("firmware.template", message, "name that in firmware.code")
    if uefi.vars:
        for name in ("code", "template"):
            if uefi.vars == paths[name]:
                message = f"{uefi.vars!r} is the {name} too, which machines share"
                yield Fault("firmware.vars", message, "name a file of its own")
    if uefi.secure_boot and board.flash and board.secure_boot is None:
        yield Fault("firmware.secure_boot", f"there is none for {board.name}", "leave it out")
