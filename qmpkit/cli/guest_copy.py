"""`qmpkit cp`: a file into a guest or out of it, streamed: its length is no matter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import IO

from qmpkit.cli.daemon import Daemon, DaemonAbsent, NoDaemon, find_daemon
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.farm_actions import one_machine
from qmpkit.cli.guest_words import refuse_no_texts
from qmpkit.cli.progress import Advance, transfer
from qmpkit.cli.sizes import human_size
from qmpkit.cli.talk import talk
from qmpkit.cli.target_file import STREAM, written
from qmpkit.cli.which_farm import which_farm
from qmpkit.errors import QmpkitError

__all__ = ["copy"]

_PART = 256 << 10
_SIZE_HEADER = "qmpkit-size"

Take = Callable[[bytes, int | None], None]
"""Takes the next part of a file, and how long it was when it was opened."""


class CopyBroken(QmpkitError):
    """A copy has broken off: the machine or its agent has ended."""


def copy(source: str, target: str, farm: str | None) -> int:
    """`cp`: into a guest or out of it."""
    into, out = _guest_path(target), _guest_path(source)
    if (into is None) == (out is None):
        raise Refusal("one of the two is NAME:/path in a guest, the other a file here, or -")
    which = which_farm(farm)
    with transfer(f"{source} → {target}") as advance:
        if into is not None:
            done = _copy_in(which, source, *into, advance)
        else:
            assert out is not None
            done = _copy_out(which, *out, target, advance)
    talk.note(f"{source} → {target}: {human_size(done)}")
    return Exit.OK


def _guest_path(word: str) -> tuple[str, str] | None:
    """A machine and a path; a name may have a colon too."""
    name, slash, path = word.partition(":/")
    if slash and name and "/" not in name:
        refuse_no_texts([path])
        return name, f"/{path}"
    if ":" in word and "/" not in word.partition(":")[0]:
        raise Refusal(f"{word!r}: a path in a guest begins with / (a file here: ./{word})")
    return None


# Into a guest


def _copy_in(farm: str, source: str, name: str, path: str, advance: Advance) -> int:
    with _source(source) as file:
        sent = _Sent(file, source, advance)
        if path.endswith("/"):
            path += "stdin" if source == STREAM else Path(source).name
        try:
            daemon = find_daemon(farm)
            machine = one_machine(daemon, name)
        except NoDaemon:
            from qmpkit.cli.offline_copy import put

            put(farm, name, path, iter(sent))
        else:
            query: dict[str, str | int] = {"path": path}
            steps = ("machines", machine, "files")
            daemon.raw("PUT", *steps, body=iter(sent), query=query, timeout=None)
    return sent.done


@contextmanager
def _source(source: str) -> Iterator[IO[bytes]]:
    """Unbuffered: to end while a thread still reads takes no lock that this thread holds."""
    stream = source == STREAM
    with ExitStack() as stack:
        try:
            which = sys.stdin.fileno() if stream else source
            file = stack.enter_context(open(which, "rb", buffering=0, closefd=not stream))
        except OSError as error:
            raise Refusal(f"{source} cannot be read: {error.strerror}") from error
        yield file


class _Sent:
    """The parts of a file as they are taken; `done` bytes have been."""

    def __init__(self, file: IO[bytes], name: str, advance: Advance) -> None:
        size = os.fstat(file.fileno()).st_size
        self.done = 0
        self._file = file
        self._name = name
        self._size = size or None  # a pipe has none
        self._advance = advance

    def __iter__(self) -> Iterator[bytes]:
        while part := self._read():
            yield part
            self.done += len(part)
            self._advance(self.done, self._size)

    def _read(self) -> bytes:
        try:
            return b"".join(self._pieces())
        except OSError as error:
            raise Refusal(f"{self._name} cannot be read: {error.strerror}") from error

    def _pieces(self) -> Iterator[bytes]:
        """Until they are a part: a pipe gives less at once."""
        left = _PART
        while left and (piece := self._file.read(left)):
            left -= len(piece)
            yield piece


# Out of a guest


def _copy_out(farm: str, name: str, path: str, target: str, advance: Advance) -> int:
    done, total = 0, None

    with written(target, Path(path).name) as file:

        def take(part: bytes, size: int | None) -> None:
            nonlocal done, total
            total = total or size
            file.write(part)
            done += len(part)
            advance(done, total)

        _receive(farm, name, path, take)
        file.flush()
    return done


def _receive(farm: str, name: str, path: str, take: Take) -> None:
    try:
        daemon = find_daemon(farm)
        machine = one_machine(daemon, name)
    except NoDaemon:
        from qmpkit.cli.offline_copy import get

        return get(farm, name, path, take)
    query: dict[str, str | int] = {"path": path}
    with daemon.open("GET", "machines", machine, "files", query=query, timeout=None) as answer:
        told = answer.headers.get(_SIZE_HEADER, "")
        size = int(told) if told.isdecimal() else None
        while part := _part_of(daemon, answer, machine, path):
            take(part, size)
    return None


def _part_of(daemon: Daemon, answer: HTTPResponse, machine: str, path: str) -> bytes:
    try:
        return daemon.part_of(answer, _PART)
    except DaemonAbsent as error:
        raise _broken(daemon, machine, path) from error


def _broken(daemon: Daemon, machine: str, path: str) -> CopyBroken:
    """Why an answer has ended too soon; raises DaemonAbsent when the daemon has, too."""
    state = daemon.get("machines", machine)["state"]
    return CopyBroken(
        f"reading {path} in machine {machine!r} broke off: the machine is {state}, and its guest's "
        f"agent may have stopped. Cure: see `qmpkit logs {machine}`, and try again"
    )
