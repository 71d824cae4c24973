"""What a daemon tells of its machines' use of the host, and changes of it."""

from __future__ import annotations

import os

import pytest
import trio
from hypercorn.trio import serve

from qmpkit import Cpu, MachineSpec
from qmpkit.server.api import make_app
from qmpkit.server.daemon import IDLE, config_for
from qmpkit.server.door import opened_door
from qmpkit.server.jobs import Jobs
from tests.live.kept import end_all, lab
from tests.sizes import NEWEST
from tests.unit.server.client import Client

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]

FIRST, LAST = (str(pick(os.sched_getaffinity(0))) for pick in (min, max))


async def test_stats_and_tuning(qemu: str) -> None:
    spec = MachineSpec(name="one", qemu=qemu, accel="tcg", memory="16MiB", cpu=Cpu(2, pin=[FIRST]))
    async with lab() as supervisor, trio.open_nursery() as nursery:
        await supervisor.ensure(spec)
        over = trio.Event()
        with opened_door("lab", supervisor.runtime_dir, None) as (listener, path):
            app = make_app(supervisor, Jobs(nursery), over.set)
            config = config_for(listener.fileno(), IDLE)

            async def run() -> None:
                await serve(app, config, shutdown_trigger=over.wait, mode="asgi")  # type: ignore[arg-type]

            nursery.start_soon(run)
            await _ask(Client(path))
            over.set()
    await end_all()


async def _ask(client: Client) -> None:
    _, found = await client.ask("GET", "/v1/stats")
    (machine,) = found["machines"]
    assert (machine["machine"], machine["state"], set(machine["vcpus"])) == (
        "one",
        "running",
        {"0", "1"},
    )
    assert machine["memory"]["rss"] > 1 << 20
    _, one = await client.ask("GET", "/v1/machines/one/stats")
    assert one["memory"]["pss"] > 0
    wanted = {"pin": [LAST, LAST], "resources": {"nice": 19, "cpu_max": 1}}
    status, done = await client.ask("POST", "/v1/machines/one/tune", wanted)
    assert status == 200
    assert done["changed"] == ["cpu.pin", "resources.nice"]
    assert done["waits"] == ["resources.cpu_max"]
    _, told = await client.ask("GET", "/v1/machines/one/tune")
    assert (told["pin"], told["resources"]["nice"]) == ([LAST, LAST], 19)
    assert os.sched_getaffinity(told["threads"]["vcpus"]["0"]) == {int(LAST)}
    taken = {"pin": None, "resources": {"nice": None}}
    _, done = await client.ask("POST", "/v1/machines/one/tune", taken)
    assert done["pin"] is None and "nice" not in done["resources"]
    wrong = {"resources": {"nise": 3}}
    status, refused = await client.ask("POST", "/v1/machines/one/tune", wrong)
    assert status == 400 and "did you mean 'nice'?" in str(refused)
