"""The command changes the library's logger for its process; tests share theirs."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpkit.cli.talk import talk


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help is laid out for 80 columns, whoever runs the tests."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    log = logging.getLogger("qmpkit")
    before = (log.handlers, log.level, log.propagate)
    yield
    log.handlers, log.level, log.propagate = before
    talk.debug = False


@pytest.fixture(autouse=True)
def own_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console asks once whether it is a terminal's: one test's answer is not the next one's."""
    monkeypatch.setattr(talk, "_console", None)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for the farm "lab" alone, short as the paths of sockets are to be."""
    folder = Path(tempfile.mkdtemp(prefix="qk-"))
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.setenv("QMPKIT_FARM", "lab")
    yield folder
    shutil.rmtree(folder)
