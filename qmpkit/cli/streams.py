"""The three standard streams, as the rest of the command may count on them."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["StdoutFailed", "provide_streams"]

_UNENCODABLE = "qmpkit.unencodable"


class StdoutFailed(OSError):
    """stdout takes no more, which is nobody's fault who was asked for something."""


class _Stdout(io.FileIO):
    """Says that it was stdout which failed: an errno alone says nothing of where."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StdoutFailed(error.errno, error.strerror) from error


def provide_streams() -> None:
    """Have all three: a closed one (`>&-`) is /dev/null, and no text is too odd to be written."""
    sys.stdin = sys.stdin or _null(0, "r")
    sys.stdout = sys.stdout or _null(1, "w")
    sys.stderr = sys.stderr or _null(2, "w")
    codecs.register_error(_UNENCODABLE, _encode_anyway)
    # Only the process's own: what else is there, somebody has put there on purpose.
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _telling(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_UNENCODABLE)


def _telling(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _Stdout(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


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
