"""A file here that a command writes: whole or not there, and stdout by the name of -."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qmpkit.cli.exits import OF_A_NAMED_FILE, Refusal
from qmpkit.errors import QmpkitError

__all__ = ["STREAM", "CannotWrite", "written"]

STREAM = "-"


class CannotWrite(QmpkitError):
    """The file system takes no more."""


@contextmanager
def written(target: str, name: str) -> Iterator[IO[bytes]]:
    """Where to write; a regular file takes the old one's place when it is whole.

    "-" is stdout; in a directory the file is called *name*.
    """
    if target == STREAM:
        yield sys.stdout.buffer
        return
    file = Path(target)
    if file.is_dir():
        file /= name
    file = Path(os.path.realpath(file))
    try:
        made = file.open("wb") if _is_special(file) else _draft(file)
        with made as opened:
            yield opened
    except OSError as error:
        kind = Refusal if isinstance(error, OF_A_NAMED_FILE) else CannotWrite
        raise kind(f"{target} cannot be written: {error.strerror}") from error


def _is_special(file: Path) -> bool:
    return file.exists() and not file.is_file()


@contextmanager
def _draft(file: Path) -> Iterator[IO[bytes]]:
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".qmpkit-", delete=False) as draft:
        try:
            os.fchmod(draft.fileno(), _mode(file))
            yield draft.file
            draft.close()
            Path(draft.name).replace(file)
        except BaseException:
            Path(draft.name).unlink()
            raise


def _mode(file: Path) -> int:
    """Of the file that is replaced, else what a new one gets."""
    if file.exists():
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
