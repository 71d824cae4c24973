"""Reading the files that people write: never one without an end, never one that is waited for."""

from __future__ import annotations

from pathlib import Path

from qmpkit.errors import Fault, SpecInvalid

__all__ = ["read_text"]

_SIZE_LIMIT = 1 << 20


def read_text(path: Path) -> str:
    """A text file of reasonable size; SpecInvalid, with one fault without a path."""
    if path.is_fifo():  # nobody may ever write to it
        raise SpecInvalid([Fault("", "is a pipe, not a file")])
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE_LIMIT + 1)
        if len(content) <= _SIZE_LIMIT:
            return content.decode("utf-8-sig")  # as Windows' editors write it
        message = f"is larger than {_SIZE_LIMIT >> 20} MiB"
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        message = f"this is not UTF-8: {error}"
    raise SpecInvalid([Fault("", message)])
