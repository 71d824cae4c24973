"""A disk that is full when a test wants it to be."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

__all__ = ["SmallDisk", "small_disk"]


@attrs.frozen
class SmallDisk:
    """A file system of some megabytes, with a few hundred files at most."""

    path: Path

    def fill(self) -> None:
        """Leave no byte and no name."""
        ballast = self.path / "ballast"
        ballast.mkdir()
        with pytest.raises(OSError, match="No space left"), (ballast / "bytes").open("wb") as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError) as caught:
            for number in range(10_000):
                (ballast / f"{number}").touch()
        assert caught.value.errno == errno.ENOSPC

    def free(self) -> None:
        """Take away what has filled it."""
        shutil.rmtree(self.path / "ballast")


@contextmanager
def small_disk(path: Path, mib: int = 1) -> Iterator[SmallDisk]:
    """Mount one at *path*, which is made; skips where this user may not."""
    path.mkdir(mode=0o700, exist_ok=True)
    options = f"size={mib}m,nr_inodes=300,mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "qmpkit-test", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: after a test that failed there may be QEMUs with sockets on it.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
