"""Supervisors of kept machines over fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qmpkit.machine.launch import LaunchOptions
from qmpkit.machine.machine import Graces
from qmpkit.process.entries import add, entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.events import Happening
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeGround

AT_ONCE = Restart(policy="on-failure", delay=0.0, jitter=0.0, intensity=3)
HASTY = LaunchOptions(graces=Graces(quit=0.2, term=0.2, kill=5))


@asynccontextmanager
async def lab(ground: FakeGround) -> AsyncIterator[Supervisor]:
    async with Supervisor("lab", keep=True, ground=ground, options=HASTY) as supervisor:
        yield supervisor


async def told(supervisor: Supervisor) -> list[Happening]:
    """All that has happened, also under the supervisors before."""
    with supervisor.subscribe(since=-1) as happenings:
        past = []
        while (happening := await happenings.past()) is not None:
            past.append(happening)
        return past


def on_disk(state: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entries_in(state / JOURNAL)[name])
    return found


def put_on_disk(state: Path, name: str, record: dict[str, Any] | str) -> None:
    """What the next supervisor is to find there; a text is taken as it is."""
    add(state / JOURNAL, {name: record if isinstance(record, str) else json.dumps(record)})
