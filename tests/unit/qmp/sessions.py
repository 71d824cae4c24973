"""A session and the fake it speaks to, as the tests of this folder need them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import FakeQemu, fake_qemu

Over = Literal["memory", "socket"]
OVERS: tuple[Over, ...] = ("memory", "socket")


@asynccontextmanager
async def pair(over: Over = "memory", **options: Any) -> AsyncIterator[tuple[FakeQemu, Session]]:
    """A fake QEMU and a session with it."""
    async with fake_qemu() as fake, open_session(fake.dial(over), name="vm", **options) as qmp:
        yield fake, qmp


def open_fds() -> set[str]:
    """The numbers of this process's descriptors."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}
