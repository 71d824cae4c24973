"""Who remembers what a machine is started from, when a change of it is made while it runs.

A machine that is started again from a spec that names another layer than its guest has
written to has silently lost what was written.  So whatever changes that says first what it
is about to do, and afterwards what came of it.
"""

from __future__ import annotations

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
    done, and that nobody needs.  `frozen`: the guest's file systems are frozen for it.
    `serving`: QEMU's NBD server runs for it.
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
    frozen: bool = False
    serving: bool = False


class Ledger(Protocol):
    """Where a machine's spec is kept."""

    async def intend(self, change: Change) -> None:
        """Write down what is about to be done, safe on disk when this returns.

        Raises JournalFailed when that is not possible: then nothing may be done.
        """

    async def settle(self, spec: MachineSpec) -> None:
        """It is done, or undone: this is the spec.

        When that cannot be written, what was intended stands, by which the truth is found.
        """


class Unwritten:
    """Of a machine that ends with its block: its spec is in the hands of who started it."""

    async def intend(self, change: Change) -> None:
        """Nothing is to be remembered."""
        await trio.lowlevel.checkpoint()

    async def settle(self, spec: MachineSpec) -> None:
        """Nothing is to be remembered."""
        await trio.lowlevel.checkpoint()
