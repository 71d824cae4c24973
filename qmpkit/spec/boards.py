"""The boards a machine can be built on, and what each has and lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import attrs

__all__ = ["ARCHITECTURES", "Board", "Family", "architectures_of", "board_of", "boards_of"]
__all__ += ["family_of"]

Family = Literal["q35", "microvm", "virt"]


@attrs.frozen(kw_only=True)
class Board:
    """What a spec, its command line and operations have to know of a board.

    `serials`: its own serial ports. `flash`: for UEFI. `secure_boot`: what of it guards
    the variables. `memory_hotplug`: "uefi" is only with that. `button`: one that
    `system_powerdown` presses; a board without gets a keyboard that has it.
    `silent_poweroff`: a QEMU before 8.2 exits when its guest powers off, and says nothing.
    `options`: of `-machine`, for a spec that does not say them. `tcg_cpu`: the model
    under TCG.
    """

    family: Family
    arch: str
    serials: int
    pci: bool = True
    ide: bool = False
    vmgenid: bool = False
    flash: bool = True
    secure_boot: Literal["smm", "unguarded"] | None = None
    cpu_hotplug: bool = False
    memory_hotplug: Literal["always", "uefi", "never"] = "never"
    button: bool = True
    silent_poweroff: bool = False
    tcg_cpu: str = "max"
    options: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """For messages: the family, and the architecture where it makes a difference."""
        return f"{self.family} on {self.arch}" if self.family == "virt" else self.family


_BOARDS = (
    Board(
        family="q35",
        arch="x86_64",
        serials=4,
        ide=True,
        vmgenid=True,
        secure_boot="smm",
        cpu_hotplug=True,
        memory_hotplug="always",
    ),
    Board(family="microvm", arch="x86_64", serials=4, pci=False, flash=False),
    Board(
        family="virt",
        arch="aarch64",
        serials=1,
        secure_boot="unguarded",
        memory_hotplug="uefi",
        tcg_cpu="cortex-a76",
        # QEMU's own choice, GICv2, ends at 8 processors.
        options={"gic-version": "max"},
    ),
    Board(
        family="virt",
        arch="riscv64",
        serials=1,
        button=False,
        silent_poweroff=True,
        tcg_cpu="rv64",
    ),
)

ARCHITECTURES = tuple(dict.fromkeys(board.arch for board in _BOARDS))

_NAMES: Mapping[Family, str] = {
    "q35": r"q35|pc-q35-\d[\w.]*",
    "microvm": r"microvm",
    "virt": r"virt|virt-\d[\w.]*",
}


@lru_cache
def family_of(machine: str) -> Family | None:
    """What kind of board a machine type is, versioned or not; None when we do not know it."""
    for family, pattern in _NAMES.items():
        if re.fullmatch(pattern, machine, re.ASCII):
            return family
    return None


def board_of(machine: str, arch: str) -> Board | None:
    """The board a machine type is on that architecture; None when there is no such board."""
    wanted = (family_of(machine), arch)
    return next((board for board in _BOARDS if (board.family, board.arch) == wanted), None)


def boards_of(arch: str | None = None) -> tuple[str, ...]:
    """The families there are, on that architecture or on any."""
    found = (board.family for board in _BOARDS if arch in (None, board.arch))
    return tuple(dict.fromkeys(found))


def architectures_of(machine: str) -> tuple[str, ...]:
    """Those that have a board of that machine type."""
    return tuple(board.arch for board in _BOARDS if board.family == family_of(machine))
