"""A daemon's application over a real socket, its machines being fakes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypercorn.trio import serve

from qmpkit.server.api import make_app
from qmpkit.server.daemon import IDLE, config_for
from qmpkit.server.door import opened_door
from qmpkit.server.jobs import Jobs
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeGround, fake_ground
from tests.unit.server.client import Client
from tests.unit.supervisor.kept import lab


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the farm "lab" has what is on record; all of it in places of the test's own."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    runtime = tempfile.mkdtemp(prefix="qk-")  # short, as the paths of sockets are to be
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", runtime)
    yield tmp_path / "state" / "lab"
    shutil.rmtree(runtime)


class Served:
    """What is served: the supervisor, the ground of its fakes, and a client."""

    def __init__(self, lab: Supervisor, ground: FakeGround, path: Path, over: trio.Event) -> None:
        self.lab = lab
        self.ground = ground
        self.path = path
        self.over = over
        self.client = Client(path)


@asynccontextmanager
async def served(idle: float = IDLE) -> AsyncIterator[Served]:
    """*idle*: seconds in which a request's head has to be there."""
    async with fake_ground() as ground, lab(ground) as supervisor, trio.open_nursery() as nursery:
        over = trio.Event()
        with opened_door("lab", supervisor.runtime_dir, None) as (listener, path):
            app = make_app(supervisor, Jobs(nursery), over.set)

            async def run() -> None:
                await serve(
                    app,  # type: ignore[arg-type]
                    config_for(listener.fileno(), idle),
                    shutdown_trigger=over.wait,
                    mode="asgi",
                )

            nursery.start_soon(run)
            yield Served(supervisor, ground, path, over)
            over.set()
            for name in supervisor.kept:
                await supervisor.declare(name, "stopped")
            nursery.cancel_scope.cancel()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory in which the paths of sockets fit."""
    folder = tempfile.mkdtemp(prefix="qk-")
    yield Path(folder)
    shutil.rmtree(folder)
