"""Sockets without a record: of whoever stays, and of what was not to outlive its supervisor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from qmpkit.process.sockets import listening_socket
from qmpkit.supervisor import strangers
from qmpkit.supervisor.events import EventLog

pytestmark = pytest.mark.usefixtures("state")

DYING = 0.05  # seconds from the last look that it takes in to its end


@pytest.fixture
def runtime() -> Path:
    return Path(os.environ["QMPKIT_RUNTIME_DIR"])


def left_in(runtime: Path) -> list[str]:
    return sorted(path.name for path in runtime.iterdir())


async def ends_once_it_is_seen(path: Path, looks: int, task_status: trio.TaskStatus[None]) -> None:
    """What it has taken in ends before its listener does."""
    with trio.socket.from_stdlib_socket(listening_socket(path)) as listener:
        task_status.started()
        for look in range(looks):
            client, _ = await listener.accept()
            with client:
                if look == 0:
                    assert await client.recv(1) == b""  # it sees at once that somebody listens
        await trio.sleep(DYING)


@pytest.mark.parametrize("looks", [1, 2])
async def test_one_whose_supervisor_died_before_it_was_on_record_is_waited_for(
    runtime: Path, looks: int
) -> None:
    """The spawner ends it, when it comes to that: nothing is left of it, and it was none."""
    directory = runtime / "web~"
    directory.mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(ends_once_it_is_seen, directory / "qmp", looks)
        events = EventLog("supervisor 'lab'")
        assert not await strangers.tell_strangers(runtime, set(), events)
    assert (events.next, left_in(runtime)) == (0, [])


async def test_all_that_stay_are_waited_for_together(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "_DYING", 0.3)
    names = [f"m{number}" for number in range(20)]
    listening = []
    for name in names:
        (runtime / name).mkdir()
        listening.append(listening_socket(runtime / name / "qmp"))
    events = EventLog("supervisor 'lab'")
    with trio.fail_after(3):
        assert await strangers.tell_strangers(runtime, {runtime / "m0"}, events)
    assert (events.next, left_in(runtime)) == (len(names) - 1, sorted(names))
    for it in listening:
        it.close()
