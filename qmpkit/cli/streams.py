"""The three standard streams, as the rest of the command may count on them."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

__all__ = ["provide_streams"]

_UNENCODABLE = "qmpkit.unencodable"


def provide_streams() -> None:
    """Have all three: a closed one (`>&-`) is /dev/null, and no text is too odd to be written."""
    sys.stdin = sys.stdin or _null(0, "r")
    sys.stdout = sys.stdout or _null(1, "w")
    sys.stderr = sys.stderr or _null(2, "w")
    codecs.register_error(_UNENCODABLE, _encode_anyway)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_UNENCODABLE)


def _null(number: int, mode: str) -> io.TextIOWrapper:
    fd = os.open(os.devnull, os.O_RDWR)
    if fd == number:
        # Programs that we start expect it too; else the next file that they open would be it.
        os.set_inheritable(fd, True)
    stream = open(fd, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as we live
    assert isinstance(stream, io.TextIOWrapper)
    return stream


def _encode_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name as they are, for the program that reads us; else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    with suppress(UnicodeEncodeError):
        return char.encode("ascii", "surrogateescape"), error.start + 1
    return char.encode("ascii", "backslashreplace"), error.start + 1
