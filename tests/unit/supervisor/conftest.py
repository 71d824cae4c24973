"""Supervisors over fakes: they start in a millisecond and do what a test wants."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake_machine import FakeHost


@pytest.fixture
def host() -> FakeHost:
    """Where the fakes are started; its handles say what they do."""
    return FakeHost()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the supervisor "lab" has what is on record; all of it in places of the test's own."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    runtime = tempfile.mkdtemp(prefix="qk-")  # short, as the paths of sockets are to be
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", runtime)
    yield tmp_path / "state" / "lab"
    shutil.rmtree(runtime)


def spec(name: str) -> MachineSpec:
    """A machine that has all that a fake has."""
    return MachineSpec(name=name, accel="tcg", memory="16MiB")
