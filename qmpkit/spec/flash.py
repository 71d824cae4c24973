"""UEFI on the command line: two flash chips, for the code and for the variables."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.spec.boards import Board
from qmpkit.spec.facts import Flash
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.names import flash_node
from qmpkit.spec.options import Json, keyvals, to_json

__all__ = ["flash_machine_options", "flash_options"]

_FDSET = 1


def flash_machine_options(uefi: Uefi, board: Board) -> Iterator[tuple[str, str | bool]]:
    """What `-machine` is told."""
    yield "pflash0", flash_node(0)
    yield "pflash1", flash_node(1)
    if uefi.secure_boot and board.secure_boot == "smm":
        yield "smm", True


def flash_options(uefi: Uefi, board: Board, flash: Flash, store: int | None) -> Iterator[str]:
    """The files behind the chips.

    A machine without a store of its own gets descriptor *store*, or, in a command to paste
    into a shell, where there is none, a temporary file that QEMU makes and removes itself.
    """
    yield from _chip(0, flash.code, flash.code_format, readonly=True)
    if uefi.vars is not None:
        yield from _chip(1, uefi.vars, flash.store_format, readonly=False)
    elif store is not None:
        yield from ("-add-fd", keyvals("", [("fd", store), ("set", _FDSET)]))
        yield from _chip(1, f"/dev/fdset/{_FDSET}", flash.store_format, readonly=False)
    else:
        pairs = [("if", "none"), ("id", flash_node(1)), ("format", flash.store_format)]
        yield from ("-drive", keyvals("", [*pairs, ("file", flash.template), ("snapshot", True)]))
    if uefi.secure_boot and board.secure_boot == "smm":
        # Else the guest's kernel could write the keys into the chip itself.
        secure = [("driver", "cfi.pflash01"), ("property", "secure"), ("value", "on")]
        yield from ("-global", keyvals("", secure))


def _chip(number: int, file: str, format: str, *, readonly: bool) -> Iterator[str]:
    node = flash_node(number)
    below: Json = {
        "driver": "file",
        "node-name": f"{node}-file",
        "filename": file,
        "read-only": readonly,
    }
    above: Json = {
        "driver": format,
        "node-name": node,
        "file": f"{node}-file",
        "read-only": readonly,
    }
    for layer in (below, above):
        yield from ("-blockdev", to_json(layer))
