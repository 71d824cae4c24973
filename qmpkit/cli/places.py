"""Where the command is asked to make something: judged before any work, as its mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.cli.exits import Refusal
from qmpkit.errors import HostLacks, ImageFailed

__all__ = ["check_cache", "check_place", "size_judged"]

_MOST = (1 << 63) - 1  # bytes: QEMU counts them in 64 bits, with a sign
# Each format has its own limit, as has the file system under a raw image: QEMU knows them.
_TOO_LARGE = (
    "too large",
    "too big",
    "Unsupported VDI image size",
    "QED image size",
    "Could not resize file: Invalid argument",
)


def check_place(
    file: Path, *, replace: bool = False, cure: str = "choose another name, or remove it first"
) -> None:
    """Refuse a name that is taken, or in a directory that is not there; blocking."""
    target = Path(os.path.realpath(file)) if replace else file  # of a circle of links: a link
    if os.path.lexists(target) and not (replace and target.is_file()):
        if replace:
            raise Refusal(f"{file} is no regular file, which alone is replaced")
        raise Refusal(f"{file} exists already. Cure: {cure}")
    try:
        found = target.parent.is_dir()
    except PermissionError:  # whoever makes the file tells it
        return
    if not found:
        raise Refusal(f"{file}: there is no directory {str(target.parent)!r}. Cure: create it")


@contextmanager
def size_judged(size: int, format: str) -> Iterator[None]:
    """A *size* that an image in *format* cannot have is a mistake in the command line."""
    mistake = f"SIZE: {size} bytes are more than a {format} image can have here"
    if size > _MOST:
        raise Refusal(mistake)
    try:
        yield
    except ImageFailed as failed:
        if any(sign in failed.stderr for sign in _TOO_LARGE):
            raise Refusal(f"{mistake}: {failed.stderr.strip()}") from failed
        raise


def check_cache() -> None:
    """That what is built can be kept; blocking.  HostLacks with the directory, and the cure."""
    folder = None
    try:
        folder = cache_dir() / "guests"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        why = getattr(error, "strerror", None) or str(error)
        where = "" if folder is None else f" {str(folder)!r}"
        raise HostLacks(
            f"the cache directory{where} cannot be made: {why}", _OTHER_CACHE
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise HostLacks(f"nothing can be made in the cache directory {str(folder)!r}", _OTHER_CACHE)


_OTHER_CACHE = "name another place: QMPKIT_CACHE_DIR=…, or a HOME that is yours"
