"""A web server, a store, and servers that are asked again at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.images.store import download, web
from qmpkit.process.spawner import shared_spawner
from tests.unit.images.store.server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    for module in (download, web):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    with serving() as ours:
        yield ours


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> images.Store:
    """An empty one; no kept machine of this user's has a word in it."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    return images.Store(tmp_path / "store", stall=1)


@pytest.fixture(scope="session")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small image."""
    made = tmp_path_factory.mktemp("made") / "made.qcow2"
    trio.run(images.create, made, "1GiB", "qcow2")
    return made.read_bytes()


@pytest.fixture
async def spawner() -> AsyncIterator[None]:
    """One for the whole test, which makes its many short programs quick."""
    async with shared_spawner():
        yield
