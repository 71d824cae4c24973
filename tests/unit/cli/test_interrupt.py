"""What a job of the daemon comes to when whoever follows it is told to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from qmpkit.cli.farm_jobs import followed


class Daemon:
    """Gets one of these signals while it tells of a job."""

    farm = "lab"

    def __init__(self, number: signal.Signals) -> None:
        self.deleted: list[tuple[str, ...]] = []
        self._number = number

    def events(self, *path: str, beat: int) -> Iterator[tuple[str, dict[str, Any]]]:
        os.kill(os.getpid(), self._number)
        yield "beat", {}
        pytest.fail("it goes on")

    def delete(self, *path: str) -> None:
        self.deleted.append(path)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Also where the tests run under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_given_up(number: signal.Signals) -> None:
    daemon, before = Daemon(number), signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        followed(daemon, "7", "moving", quiet=True)  # type: ignore[arg-type]
    assert daemon.deleted == [("jobs", "7")]
    assert signal.getsignal(number) is before
