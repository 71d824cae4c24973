"""A web server, a store, and servers that are asked again at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.images.store import download, web
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
    return images.Store(tmp_path / "store", stall=0.5)


@pytest.fixture
def qcow2(tmp_path: Path) -> bytes:
    """A small image, with something in it."""
    made = trio.run(lambda: images.create(tmp_path / "made.qcow2", "1GiB", "qcow2"))
    content = made.read_bytes()
    made.unlink()
    return content
