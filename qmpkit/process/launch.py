"""What is to be started, and what it means when it cannot be."""

from __future__ import annotations

import errno
import marshal
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import attrs

from qmpkit.errors import BinaryMissing, QmpkitError
from qmpkit.process._spawner_main import MAX_FDS
from qmpkit.process.cgroup import Group
from qmpkit.process.errors import SpawnFailed
from qmpkit.process.limits import Limits

__all__ = ["Launch", "launch_failure"]

FDS_LIMIT = MAX_FDS - 2
"""Descriptors one process can be given; two more travel with them."""


@attrs.frozen
class Launch:
    """What to start: `fds` maps the child's descriptor numbers to ours; `env` None is our own.

    `group`: the control group that it is born in; None is ours.
    """

    argv: Sequence[str]
    fds: Mapping[int, int] = attrs.field(factory=dict)
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    limits: Limits | None = None
    group: Group | None = None

    def __attrs_post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ValueError("a command needs the name of a program")
        if len(self.fds) > FDS_LIMIT:
            raise ValueError(f"{len(self.fds)} file descriptors, {FDS_LIMIT} can be passed")
        if any(number < 0 for number in self.fds):
            raise ValueError(f"a file descriptor has no negative number: {sorted(self.fds)}")
        env = self.env or {}
        if wrong := [name for name in env if not name or "=" in name]:
            raise ValueError(f"not a name of an environment variable: {wrong[0]!r}")
        if wrong := [word for word in (*self.argv, *env, *env.values()) if "\0" in word]:
            raise ValueError(f"a NUL cannot be passed to a program: {wrong[0]!r}")

    def body(self) -> bytes:
        """What the spawner needs to know, as it reads it."""
        env = os.environ if self.env is None else self.env
        argv = [os.fsencode(word) for word in self.argv]
        paths = [os.fsencode(path) for path in self._candidates(env)]
        raw_env = _raw(self.env)
        cwd = b"" if self.cwd is None else os.fsencode(self.cwd)
        limits = [] if self.limits is None else self.limits.rlimits()
        group = None
        if self.group is not None:
            group = (os.fsencode(self.group.path), os.fsencode(self.group.mount))
        return marshal.dumps((argv, raw_env, paths, cwd, list(self.fds), limits, group))

    def _candidates(self, env: Mapping[str, str]) -> list[str]:
        program = self.argv[0]
        if "/" in program:
            return [program]
        return [f"{folder or '.'}/{program}" for folder in os.get_exec_path(env)]


def _raw(env: Mapping[str, str] | None) -> dict[bytes, bytes]:
    return dict(os.environb) if env is None else dict(_encoded(tuple(env.items())))


@lru_cache(maxsize=4)  # most of ours get the same
def _encoded(env: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((os.fsencode(name), os.fsencode(value)) for name, value in env)


def launch_failure(launch: Launch, stage: str, code: int, raw_path: bytes) -> QmpkitError:
    """The error for a launch that the spawner could not do."""
    path = os.fsdecode(raw_path)
    if stage != "exec" or code not in (errno.ENOENT, errno.ENOTDIR):
        cure = ""
        if stage == "exec" and code == errno.EACCES:
            cure = f"make {path} executable, and every directory above it searchable"
        return SpawnFailed(launch.argv, stage, code, path, cure)
    if Path(path).exists():
        cure = "install the interpreter that its first line names"
        return SpawnFailed(launch.argv, stage, code, path, cure)
    program = launch.argv[0]
    where = "does not exist" if "/" in program else "is not on PATH"
    return BinaryMissing(f"the program {program!r} {where}", "install it, or give its full path")
