"""A supervisor on fakes, with directories of the test's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the supervisor "lab" has what is on record; all of it in places of the test's own."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    runtime = tempfile.mkdtemp(prefix="qk-")  # short, as the paths of sockets are to be
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", runtime)
    yield tmp_path / "state" / "lab"
    shutil.rmtree(runtime)
