"""A supervisor's machines seen from outside: nothing is changed, claimed or asked for by it.

Kept machines outlive their supervisor.  While none runs, what is on record and what the
kernel says of the processes tell how they are.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import attrs

from qmpkit.machine.keep import Home
from qmpkit.process.identity import Standing, boot_id, look_for
from qmpkit.process.roots import JOURNAL, state_root
from qmpkit.supervisor.adopt import end_found
from qmpkit.supervisor.journal import Lost, seen_records
from qmpkit.supervisor.record import End, Record

__all__ = ["Onlook", "Seen", "look_at"]


@attrs.frozen
class Seen:
    """One machine: its record, where its sockets and logs are, what has become of its process."""

    record: Record
    home: Home
    standing: Standing

    @property
    def alive(self) -> bool:
        """Whether its QEMU is there; its guest may have shut down within."""
        return self.standing.lives

    @property
    def end(self) -> End | None:
        """How its process has ended, as the next supervisor will judge it; None when it lives."""
        return None if self.alive else end_found(self.record, self.standing, boot_id())

    @property
    def since(self) -> float:
        """The seconds it has been so."""
        record = self.record
        if self.alive and record.identity is not None:
            return record.identity.age
        return max(0.0, time.time() - (record.time if record.end is None else record.end.time))


@attrs.frozen
class Onlook:
    """What is seen of a supervisor: `holder` is the process that supervises, None: nobody does.

    `lost` are the files that are no records.
    """

    machines: tuple[Seen, ...]
    lost: tuple[Lost, ...]
    holder: int | None


def look_at(name: str) -> Onlook | None:
    """The machines of the supervisor *name*; None when it has none on record.  Blocking.

    Raises `JournalNewer`, and OSError for what may not be read.
    """
    state = state_root() / name
    if not (state / "machines").is_dir():
        return None
    holder = _holder(state)
    records, lost = seen_records(state / JOURNAL)
    machines = (_seen(record, state) for record in records)
    return Onlook(tuple(machines), tuple(lost), holder)


def _seen(record: Record, state: Path) -> Seen:
    home = Home(Path(record.sockets), state / "logs" / record.name)
    if record.identity is None or record.phase == "down":
        return Seen(record, home, Standing.GONE)
    standing, pidfd = look_for(record.identity)
    if pidfd is not None:
        os.close(pidfd)
    return Seen(record, home, standing)


def _holder(state: Path) -> int | None:
    """Who has the lock.  The kernel's table tells: trying it could turn a daemon away."""
    with suppress(OSError, ValueError):
        pid, inode = int((state / "lock").read_text()), (state / "lock").stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            kind, _, _, owner, file, *_ = line.split()[1:]
            if (kind, owner, file.rpartition(":")[2]) == ("FLOCK", str(pid), str(inode)):
                return pid
    return None
