"""The hidden folder beside a path, in which what is to be there is put together."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress

from qmpkit.images.tool import Asked
from qmpkit.process.held_dirs import HeldDir, hold_new_dir, sweep

__all__ = ["hidden_beside"]


def hidden_beside(asked: Asked, kind: str) -> HeldDir:
    """A new folder (0700) beside the path of *asked*, named as one of this *kind*.  Blocking.

    Those that killed programs have left there go before.  ImageFailed.
    """
    parent = asked.path.parent
    try:
        with suppress(OSError):  # a folder that may be written, but not read
            sweep(parent, re.compile(rf"\.qk-[0-9a-f]{{12}}\.{kind}"))
        return hold_new_dir(parent, lambda: f".qk-{secrets.token_hex(6)}.{kind}")
    except OSError as error:
        raise asked.failed_by(error) from error
