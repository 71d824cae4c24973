"""Who remembers what a machine is started from, when a change of it is made while it runs.

A machine that is started again from a spec that names another layer than its guest has
written to has silently lost what was written.  So whatever changes that says first what it
is about to do, and afterwards what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit.spec.machine import MachineSpec

__all__ = ["Change", "Ledger", "Unwritten"]


@attrs.frozen(kw_only=True)
class Change:
    """A change that is under way.

    `what`: in words, for people.  `spec`: what the machine is started from once it is done,
    `begun` meanwhile and when it is not done in the end.  `sure`: `spec` is right as soon
    as all of `files` are there, whoever dies.  `job`, `nodes`, `files`: the job that does it
    and the nodes and files that are made for it, to be gone when it is not done in the end;
    `jobs`: those that do it together, when they are several.
    `leaving`, `obsolete`: nodes and files that the machine does not use any more once it is
    done, and that nobody needs.  `inodes`: those of `made`, once they are made: a file that
    is another one is not removed.  `memory`, `variables`: the files that the RAM and the UEFI
    variables go into, made and removed like `files`; `halted`: the guest ran before, and
    stands still for that.  `tag`: a snapshot in the images, to be gone likewise.
    `frozen`: the guest's file systems are frozen for it.
    `serving`: QEMU's NBD server runs for it.  `drive`: the CD drive whose medium changes.
    `coming`, `going`: the parts (`qmpkit.spec.parts`, "device/nic1") that are added to a
    machine that runs, or taken away from it, in that order; it is done when their devices
    are there, or no more.
    """

    what: str
    spec: MachineSpec
    begun: MachineSpec
    sure: bool = False
    job: str = ""
    jobs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()
    inodes: tuple[int, ...] = ()
    memory: str = ""
    variables: str = ""
    halted: bool = False
    tag: str = ""
    frozen: bool = False
    serving: bool = False
    drive: str = ""
    coming: tuple[str, ...] = ()
    going: tuple[str, ...] = ()

    @property
    def made(self) -> tuple[str, ...]:
        """All files that are made for it, in the order of `inodes`."""
        return (*self.files, *filter(None, (self.memory, self.variables)))

    @property
    def stands(self) -> bool:
        """Whether the guest stands still for it, if it ran."""
        return bool(self.memory or self.variables)


class Ledger(Protocol):
    """Where a machine's spec is kept."""

    lasting: bool
    """Whether the machine is started again from it when nobody is there to hand things over."""
    fleeting: Path | None
    """The directory of images that are gone when the machine is: nothing may need them then."""
    borrowed: Path | None
    """The directory of what its user may remove once it has ended: the template of a clone."""

    async def intend(self, change: Change) -> None:
        """Write down what is about to be done, safe on disk when this returns.

        Raises JournalFailed when that is not possible: then nothing may be done.
        """

    async def settle(self, spec: MachineSpec) -> bool:
        """It is done, or undone: this is the spec; whether that is safe on disk.

        When it is not, what was intended stands, by which the truth is found.
        """

    async def users_of(self, files: Sequence[str]) -> list[str]:
        """The other machines that need one of *files*, as far as they are known."""


class Unwritten:
    """Of a machine that ends with its block: its spec is in the hands of who started it."""

    lasting = False

    def __init__(self, fleeting: Path | None = None, borrowed: Path | None = None) -> None:
        self.fleeting = fleeting
        self.borrowed = borrowed

    async def intend(self, change: Change) -> None:
        """Nothing is to be remembered."""
        await trio.lowlevel.checkpoint()

    async def settle(self, spec: MachineSpec) -> bool:
        """Nothing is to be remembered."""
        await trio.lowlevel.checkpoint()
        return True

    async def users_of(self, files: Sequence[str]) -> list[str]:
        """Nobody is known."""
        await trio.lowlevel.checkpoint()
        return []
