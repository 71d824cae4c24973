"""What machines take of the host is counted as they come and go, whatever way they go."""

from __future__ import annotations

import attrs
import pytest
import trio

from qmpkit.errors import HostLacks
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.sizes import GIB, MIB
from qmpkit.supervisor import gate as gate_module
from qmpkit.supervisor.admission import Host, Pool
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake_kept import FakeKept, fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture(autouse=True)
def room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Host(memory=Pool(GIB, GIB), cpus=Pool.whole(8))
    monkeypatch.setattr(gate_module, "host_now", lambda pages: room)


def big(name: str) -> MachineSpec:
    """A machine beside which there is no room for another such."""
    return attrs.evolve(spec(name), memory=Memory(600 * MIB))


async def _has_room(supervisor: Supervisor) -> None:
    with trio.fail_after(5):
        await supervisor.ensure(big("z"))
    await supervisor.declare("z", "stopped")
    await supervisor.forget("z")


async def _has_none(supervisor: Supervisor) -> None:
    kept = await supervisor.ensure(big("z"), wait=False)
    await kept.until(lambda: kept.cause.startswith("it waits for"))
    assert "of memory" in kept.cause
    await supervisor.declare("z", "stopped")
    await supervisor.forget("z")


async def test_one_that_is_up_takes_room_until_it_is_down_for_good() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(big("a"), restart="never")
        await _has_none(supervisor)
        ground["a"].kill()
        await supervisor.kept["a"].wait_rest()
        await _has_room(supervisor)


async def test_one_that_is_adopted_takes_room_at_once() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(big("a"))
        async with lab(ground) as second:
            await _has_none(second)
            await second.declare("a", "stopped")
            await _has_room(second)


async def test_a_start_that_fails_takes_no_room() -> None:
    def fail(fake: FakeKept) -> None:
        raise HostLacks("it is broken", "")

    async with fake_ground() as ground, lab(ground) as supervisor:
        ground.prepare = fail
        with pytest.raises(HostLacks):
            await supervisor.ensure(big("a"))
        ground.prepare = lambda fake: None
        await _has_room(supervisor)


async def test_a_start_that_is_cancelled_anywhere_takes_no_room() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:

        async def clean() -> None:
            if "a" in supervisor.kept:
                await supervisor.declare("a", "stopped")
                await supervisor.forget("a")
            await _has_room(supervisor)

        await cancel_at_every_checkpoint(lambda: supervisor.ensure(big("a")), every=5, after=clean)
