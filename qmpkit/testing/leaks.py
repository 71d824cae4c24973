"""Find what a block of code has left behind."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import attrs
import trio

from qmpkit.process.rundir import owner_of, runtime_root

__all__ = ["Leaked", "leaks", "living_with"]


class Leaked(AssertionError):
    """A block left things behind; `found` describes each of them."""

    def __init__(self, found: list[str]) -> None:
        self.found = tuple(found)
        super().__init__(f"{len(found)} left behind:\n" + "\n".join(f"  - {it}" for it in found))


@attrs.frozen
class _Seen:
    """Everything that can be left behind, each with what to say about it."""

    processes: dict[object, str]
    descriptors: dict[object, str]
    directories: dict[object, str]
    tasks: dict[object, str]

    def new_since(self, before: _Seen) -> list[str]:
        found = []
        for kind in ("processes", "descriptors", "directories", "tasks"):
            old = getattr(before, kind)
            found += [text for key, text in getattr(self, kind).items() if key not in old]
        return found


class leaks:
    """After the block there is no more than before of what we can lose.

    Looked at: descendants of this process (those of our spawner too, zombies
    too, and those that have lost their parents: they carry a mark in their
    environment), file descriptors, machine directories in the runtime
    directory, and, in `async with`, the tasks of this trio run.

    `with leaks():` goes around `trio.run`, `async with leaks():` inside one.
    What is found gets *grace* seconds to vanish, for the kernel takes its time
    to end a killed process.  Then `Leaked` is raised, instead of a cancellation
    too; when the block has failed with an exception, that one gets a note.
    """

    def __init__(self, *, grace: float = 2.0) -> None:
        self._grace = grace
        self._mark = f"QMPKIT_LEAKS_{secrets.token_hex(4)}"

    def __enter__(self) -> leaks:
        if trio.lowlevel.in_trio_run():
            raise RuntimeError("inside a trio run it is `async with leaks()`")
        self._begin()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        end = time.monotonic() + self._grace
        while (found := self._found()) and time.monotonic() < end:
            time.sleep(0.02)
        self._report(found, error)

    async def __aenter__(self) -> leaks:
        self._begin()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        with trio.move_on_after(self._grace, shield=True):
            # The kernel tells nobody when the last trace of a process is gone.
            while self._found():  # noqa: ASYNC110
                await trio.sleep(0.02)
        self._report(self._found(), error)

    def _begin(self) -> None:
        os.environ[self._mark] = "1"
        self._before = _see(self._mark)

    def _found(self) -> list[str]:
        return _see(self._mark).new_since(self._before)

    def _report(self, found: list[str], error: BaseException | None) -> None:
        os.environ.pop(self._mark, None)
        if found and (error is None or _is_cancelled(error)):
            raise Leaked(found)
        if found and error is not None:
            error.add_note(str(Leaked(found)))


def _is_cancelled(error: BaseException) -> bool:
    """True when there is nothing in it but cancellation."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancelled, error.exceptions))
    return isinstance(error, trio.Cancelled)


def _see(mark: str) -> _Seen:
    return _Seen(_processes(mark), _descriptors(), _directories(), _tasks())


@attrs.frozen
class _Stat:
    pid: int
    parent: int
    state: str
    started: int


def _stats() -> Iterator[_Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name may hold anything, spaces and parentheses too.
                rest = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
                words = rest.split()
                yield _Stat(int(entry.name), int(words[1]), words[0], int(words[19]))


def _processes(mark: str) -> dict[object, str]:
    stats = {stat.pid: stat for stat in _stats()}
    wanted = f"{mark}=".encode()
    return {
        (stat.pid, stat.started): _describe(stat)
        for stat in stats.values()
        if _descends(stat, stats) or wanted in _raw(stat.pid, "environ")
    }


def _descends(stat: _Stat, stats: dict[int, _Stat]) -> bool:
    while (parent := stats.get(stat.parent)) is not None:
        if parent.pid == os.getpid():
            return True
        stat = parent
    return False


def _describe(stat: _Stat) -> str:
    command = _command(stat.pid).decode(errors="replace")[:300]
    state = "zombie" if stat.state == "Z" else f"state {stat.state}"
    return f"process {stat.pid} ({state}, child of {stat.parent}): {command or '(no command)'}"


def living_with(text: str) -> list[int]:
    """The living processes of this host with *text* in their command or environment.

    A zombie is dead.  The environment of another user's process is seen by root alone.
    """
    wanted = text.encode()
    return [stat.pid for stat in _stats() if stat.state not in "ZX" and _has(stat.pid, wanted)]


def _has(pid: int, wanted: bytes) -> bool:
    return wanted in _command(pid) or wanted in _raw(pid, "environ")


def _command(pid: int) -> bytes:
    return _raw(pid, "cmdline").replace(b"\0", b" ").rstrip()


def _raw(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # another user's, or gone
        return b""


def _descriptors() -> dict[object, str]:
    seen: dict[object, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the directory of this very listing
            target = str(entry.readlink())
            seen[entry.name, target] = f"file descriptor {entry.name}: {target}"
    return seen


def _directories() -> dict[object, str]:
    """Machine directories that we made; all of them when the root is surely private to us."""
    root = runtime_root()
    private = "QMPKIT_RUNTIME_DIR" in os.environ
    return {
        path: f"runtime directory {path}"
        for path in root.iterdir()
        if private or owner_of(path) == os.getpid()
    }


def _tasks() -> dict[object, str]:
    if not trio.lowlevel.in_trio_run():
        return {}
    root = trio.lowlevel.current_root_task()
    return {} if root is None else {task: f"task {task.name}" for task in _below(root)}


def _below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from _below(child)
