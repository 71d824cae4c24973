"""What can go wrong around a child process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qmpkit.errors import QmpkitError
from qmpkit.process.identity import Standing

__all__ = ["SpawnFailed", "SpawnerLost", "ProcessStuck", "ProcessVanished"]


class SpawnFailed(QmpkitError):
    """A program could not be started at all; nothing of it runs.

    `errno` is the system's reason and `stage` what was being done: "exec", "cwd",
    "fds", "cgroup", "limits" or "pidfd".  A program that does not exist is `BinaryMissing` instead.
    """

    def __init__(
        self, argv: Sequence[str], stage: str, errno: int, path: str, cure: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.stage = stage
        self.errno = errno
        self.path = path
        self.cure = cure
        super().__init__(self.argv, stage, errno, path, cure)

    def __str__(self) -> str:
        doing = {
            "cwd": f"enter the directory {self.path!r}",
            "fds": "pass on its file descriptors",
            "cgroup": f"put it into the control group {self.path!r}",
            "limits": "limit what it may use",
            "pidfd": "watch it",
        }.get(self.stage, f"execute {self.path!r}")
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"cannot start {self.argv[0]!r}: cannot {doing}: {os.strerror(self.errno)}{cure}"


class SpawnerLost(QmpkitError):
    """The process that starts and guards our children is gone, and its children are killed."""

    def __str__(self) -> str:
        return (
            "the spawner process has ended (killed from outside?); the processes it had "
            "started are killed, and no new one can be started under it"
        )


class ProcessStuck(QmpkitError):
    """A process outlived SIGKILL and a grace: the kernel holds it, or it is not ours."""

    def __init__(self, name: str, pid: int, grace: float) -> None:
        self.name = name
        self.pid = pid
        self.grace = grace
        super().__init__(name, pid, grace)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) is still alive {self.grace:g} s after SIGKILL"


class ProcessVanished(QmpkitError):
    """A process that was to be adopted is not alive; `standing` says what became of it."""

    def __init__(self, pid: int, standing: Standing) -> None:
        self.pid = pid
        self.standing = standing
        super().__init__(pid, standing)

    def __str__(self) -> str:
        return f"the process {self.pid} is no more: {self.standing.value}"
