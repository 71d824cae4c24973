"""The secret of an encrypted image, from a file, from stdin or from a descriptor."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

from qmpkit.cli.exits import Refusal

__all__ = ["read_secret"]

_LONGEST = 4096


async def read_secret(file: Path | None) -> bytes | None:
    """What is in *file* ("-": stdin), None without one; Refusal when it cannot be read."""
    if file is None:
        return None
    # A pipe's other end may take its time, and an interruption must not wait for it.
    return await trio.to_thread.run_sync(partial(_read, file), abandon_on_cancel=True)


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            secret = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with file.open("rb") as source:
                secret = source.read(_LONGEST + 1)
    except OSError as error:
        raise Refusal(f"--secret-file: {file} cannot be read: {error.strerror}") from error
    if not secret:
        raise Refusal(f"--secret-file: {file} is empty")
    if len(secret) > _LONGEST:
        raise Refusal(f"--secret-file: {file} is longer than {_LONGEST} bytes")
    return secret
