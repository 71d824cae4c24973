"""Networks that somebody has taken apart under machines that run: told, and mended by `up`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from qmpkit.errors import HostLacks
from qmpkit.farm import plan_up, up
from qmpkit.networks.farm_networks import FarmNetworks, Plugged
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_plan import ChangeLive, RestartNeeded, Unchanged
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeGround, fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import HASTY

pytestmark = pytest.mark.usefixtures("state")

BRIDGE = Flaw("the bridge 'br' of network 'lan': removed", mendable=True)
TAP = Flaw("the tap device of nic0 of network 'lan': removed (qk0)", mendable=False)
LAN = {"lan": {"kind": "bridge", "bridge": "br", "make": True}}
TABLE = {"networks": [{"name": "lan"}]}


class Told(FarmNetworks):
    """Makes nothing; what is told of it is written in `flaws`."""

    def __init__(self) -> None:
        super().__init__()
        self.flaws: dict[str, tuple[Flaw, ...]] = {}
        self.lacks: HostLacks | None = None

    async def make(self, member: str, joined: Sequence[Joined]) -> None:
        if member in self.flaws:
            if self.lacks is not None:
                raise self.lacks
            self.flaws[member] = tuple(it for it in self.flaws[member] if not it.mendable)

    async def look(self, members: Mapping[str, Sequence[Joined]]) -> dict[str, tuple[Flaw, ...]]:
        assert all(join.nic == "nic0" for joined in members.values() for join in joined)
        return {name: self.flaws[name] for name in members if self.flaws.get(name)}

    @asynccontextmanager
    async def plugged(
        self, spec: MachineSpec, joined: Sequence[Joined], member: str
    ) -> AsyncIterator[Plugged]:
        self.flaws.pop(member, None)
        yield Plugged(spec)

    async def drop(self, member: str, joined: Sequence[Joined]) -> None:
        pass


def _lab(ground: FakeGround, networks: Told) -> Supervisor:
    return Supervisor("lab", keep=True, ground=ground, options=HASTY, networks=networks)


async def test_what_can_be_made_anew_while_they_run_is() -> None:
    wanted, networks = farm(LAN, a=TABLE, b=TABLE), Told()
    async with fake_ground() as ground, _lab(ground, networks) as supervisor:
        await up(supervisor, wanted)
        networks.flaws = {"a": (BRIDGE,), "b": ()}
        plan = await plan_up(supervisor, wanted)
        gone, fine = plan.steps
        assert gone == ChangeLive("a", (), running=True, flaws=(BRIDGE,))
        assert (fine, plan.is_empty) == (Unchanged("b", running=True), False)
        outcome = await up(supervisor, wanted)
        assert did(outcome) == {"a": "mended", "b": "unchanged"}
        assert outcome.machines["a"].why == BRIDGE.what
        assert (await plan_up(supervisor, wanted)).is_empty
        assert len(ground.started) == 2


async def test_what_takes_a_restart_is_told_until_it_is_done() -> None:
    wanted, networks = farm(LAN, a=TABLE), Told()
    async with fake_ground() as ground, _lab(ground, networks) as supervisor:
        await up(supervisor, wanted)
        networks.flaws = {"a": (BRIDGE, TAP)}
        (step,) = (await plan_up(supervisor, wanted)).steps
        assert step == RestartNeeded("a", (), (), (BRIDGE, TAP))
        for _ in range(2):
            outcome = await up(supervisor, wanted)
            assert did(outcome) == {"a": "restart-needed"}
            assert outcome.machines["a"].why == f"after a restart: {TAP.what}"
        assert networks.flaws == {"a": (TAP,)}
        assert did(await up(supervisor, wanted, restart=True)) == {"a": "restarted"}
        assert did(await up(supervisor, wanted)) == {"a": "unchanged"}


async def test_what_cannot_be_mended_is_that_machines_failure() -> None:
    wanted, networks = farm(LAN, a=TABLE, b={}), Told()
    async with fake_ground() as ground, _lab(ground, networks) as supervisor:
        await up(supervisor, farm(LAN, a=TABLE))
        networks.flaws, networks.lacks = {"a": (BRIDGE,)}, HostLacks("somebody has its name")
        outcome = await up(supervisor, wanted)
        assert did(outcome) == {"a": "failed", "b": "added"}
        assert "somebody has its name" in outcome.machines["a"].why


async def test_one_that_is_down_is_not_looked_at() -> None:
    wanted, networks = farm(LAN, a=TABLE), Told()
    async with fake_ground() as ground, _lab(ground, networks) as supervisor:
        await up(supervisor, wanted)
        await supervisor.declare("a", "stopped")
        networks.flaws = {"a": (TAP,)}
        assert await supervisor.network_flaws() == {}
        assert did(await up(supervisor, wanted)) == {"a": "started"}
