"""The file that a download is written to: what is there of it, and its sums.  Blocking.

What is left of a download that was broken off is gone on with when it is safe to: the
server says by If-Range that it has the same file still, or a checksum will tell.  Without
a checksum what is left must be of this boot of the host: after a power cut a file may
have its length and not its content.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.process.durable import DRAFT

__all__ = ["DATA", "Landing", "Left"]

DATA = "data"
"""The file's name."""

_CHUNK = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@attrs.frozen
class Left:
    """What is known of the file that comes: `total` bytes, None when the server did not say.

    `validator`: what If-Range takes, "" for none.  `etag`: what If-None-Match takes.
    """

    url: str
    validator: str
    etag: str
    total: int | None
    boot: str

    @classmethod
    def read(cls, path: Path) -> Left | None:
        """What was known; None when nothing was."""
        with suppress(OSError, ValueError, TypeError):
            data: dict[str, Any] = json.loads(path.read_bytes())
            return cls(**data)
        return None

    def write(self, path: Path) -> None:
        """Let `read` have it; raises OSError."""
        draft = path.with_name(path.name + DRAFT)
        draft.write_text(json.dumps(attrs.asdict(self)))
        draft.replace(path)


class Landing:
    """The file `DATA` in *folder*, open, with the sums of what is in it."""

    def __init__(self, folder: Path, algorithms: set[str]) -> None:
        self.path = folder / DATA
        self.length = 0
        self.left: Left | None = None
        self.pieced = False  # not all of it is of one answer
        self._told = folder / "meta.json"
        self._algorithms = algorithms
        self._sums = {name: hashlib.new(name) for name in algorithms}
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def resume(self, url: str, *, checked: bool) -> None:
        """Take what is left of an earlier download of *url*, if that is safe; else begin anew.

        *checked*: a checksum will tell whether all of it is right.  In a thread of trio's:
        what is there is read, and a cancellation ends that.
        """
        left = Left.read(self._told)
        same = left is not None and left.url == url
        if left is None or not same or not (checked or (left.validator and left.boot == _boot())):
            self.restart()
            return
        self.left, self.pieced = left, True
        while chunk := os.pread(self._fd, _CHUNK, self.length):
            trio.from_thread.check_cancelled()
            self._count(chunk)

    def restart(self) -> None:
        """Begin anew, with nothing; raises OSError."""
        os.ftruncate(self._fd, 0)
        with suppress(FileNotFoundError):
            self._told.unlink()
        self._sums = {name: hashlib.new(name) for name in self._algorithms}
        self.length, self.left, self.pieced = 0, None, False

    def learn(self, url: str, validator: str, etag: str, total: int | None) -> None:
        """Remember what a server told of the file that begins to come; raises OSError."""
        self.left = Left(url, validator, etag, total, _boot())
        self.left.write(self._told)

    def write(self, data: bytes) -> None:
        """Add *data*; raises OSError."""
        view = memoryview(data)
        at = self.length
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written
        self._count(data)

    def _count(self, data: bytes) -> None:
        for each in self._sums.values():
            each.update(data)
        self.length += len(data)

    @property
    def sums(self) -> dict[str, str]:
        """Of what is in it: hexadecimal digits by algorithm."""
        return {name: each.hexdigest() for name, each in self._sums.items()}


def _boot() -> str:
    return _BOOT.read_text().strip()
