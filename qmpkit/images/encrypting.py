"""How an image that is made for an encrypted disk is encrypted: by the disk's own secret."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.keys import Secret
from qmpkit.images.options import DEFAULTS, Options
from qmpkit.spec.encryption import LONGEST_SECRET, Luks, secret_problem

__all__ = ["Encrypting", "encrypting"]


class Encrypting(TypedDict):
    """What `place_empty` and its like take for that."""

    secret: Secret | None
    options: Options


async def encrypting(luks: Luks | None) -> Encrypting:
    """Read the secret; none for a disk that is not encrypted.

    SpecInvalid when the file is not there any more, or holds what QEMU would not take.
    """
    if luks is None:
        return Encrypting(secret=None, options=DEFAULTS)
    # A file system that hangs must not hold up who gives up.
    secret = await trio.to_thread.run_sync(_read, luks.key_file, abandon_on_cancel=True)
    return Encrypting(secret=secret, options=Options(iter_time=luks.iter_time))


def _read(file: str) -> bytes:
    try:
        with Path(file).open("rb") as source:
            secret = source.read(LONGEST_SECRET + 1)
    except OSError as error:
        message = f"{file!r} cannot be read: {(error.strerror or str(error)).lower()}"
        raise SpecInvalid([Fault("luks.key_file", message)]) from error
    if problem := secret_problem(secret):
        raise SpecInvalid([Fault("luks.key_file", f"the secret in {file!r} {problem}")])
    return secret
