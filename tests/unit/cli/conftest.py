"""The command changes the library's logger for its process; tests share theirs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

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
