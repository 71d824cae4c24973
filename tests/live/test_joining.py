"""A kept machine that joins a network of its farm while its guest runs, and leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import Supervisor, UserNic
from qmpkit.errors import SpecInvalid
from qmpkit.farm.converge import up
from qmpkit.spec.farm_load import load_farm
from qmpkit.spec.network import DgramNic, StreamNic
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.live.kept import Places, end_all, lab
from tests.live.plugged import agreed, hmp
from tests.live.test_networks import hears, said
from tests.sizes import HOTPLUG_CANCELS, OLDEST, SEGMENT_KINDS

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*OLDEST),
    pytest.mark.bound(180 + 200 // HOTPLUG_CANCELS),
]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
[networks.left]
kind = "segment"
socket = "{kind}"
[machines.a]
profile = "tiny-microvm"
networks = ["left"]
[machines.b]
profile = "tiny"
"""


def ports(places: Places) -> list[str]:
    """The sockets of machines in the segment."""
    folder = places.runtime / "lab" / ".net" / "left"
    names = (path.name.removeprefix("@") for path in folder.iterdir())
    return sorted(name for name in names if name.startswith("b."))


async def address(supervisor: Supervisor, name: str, address: str) -> None:
    script = f"until ip link set eth0 up; do usleep 20000; done; ip addr add {address}/24 dev eth0"
    assert await said(supervisor.kept[name], f"({script}) 2>/dev/null")


@pytest.mark.parametrize("kind", SEGMENT_KINDS)
async def test_a_guest_joins_and_leaves(
    kind: str, qemu: str, tmp_path: Path, places: Places
) -> None:
    farm = tmp_path / "farm.toml"
    farm.write_text(FARM.format(qemu=qemu, kind=kind))
    async with lab() as supervisor:
        await up(supervisor, load_farm(farm))
        one, other = supervisor.kept["a"], supervisor.kept["b"]
        for kept in (one, other):
            assert kept.vm is not None
            await kept.vm.agent.wait_ready()
        with pytest.raises(SpecInvalid, match="no machine is in a network 'lefd'"):
            await supervisor.join("b", "lefd")
        assert other.vm is not None and not other.vm.spec.nics
        with pytest.raises(SpecInvalid, match="microvm has no PCI"):
            await supervisor.join("a", "left")
        assert not one.record.plugged
        with pytest.raises(SpecInvalid, match="is that of 'a' on the same network 'left'"):
            await supervisor.join("b", "left", mac=one.spec.nics[0].mac)
        assert one.vm is not None
        (wired,) = one.vm.spec.nics
        assert isinstance(wired, DgramNic)
        double = DgramNic(local=f"unix:{tmp_path}/b", remote=wired.remote, mac=wired.mac)
        with pytest.raises(SpecInvalid, match="is that of 'a' on the same unix:"):
            await other.vm.nics.add(double)
        assert not other.vm.spec.nics and other.record.change is None

        async def join() -> None:
            await supervisor.join("b", "left")

        async def nothing() -> None:
            assert other.vm is not None
            for cable in other.vm.spec.nics:
                await supervisor.leave("b", cable.id)
            assert ports(places) == [] and not other.record.plugged

        await cancel_at_every_checkpoint(join, every=HOTPLUG_CANCELS, after=nothing)
        nic = await supervisor.join("b", "left")
        as_the_farm_has_it = {"dgram": DgramNic, "stream": StreamNic}[kind]
        assert nic == as_the_farm_has_it(mac=nic.mac, id=nic.id, bus=nic.bus)
        assert other.spec.nics == (nic,)
        await address(supervisor, "a", "10.0.0.1")
        await address(supervisor, "b", "10.0.0.2")
        assert await hears(other, "10.0.0.1")
        assert ports(places) == [f"b.{nic.id}"]
        await up(supervisor, load_farm(farm))  # the file has nothing to say of it
        assert other.spec.nics == (nic,)
    async with lab() as supervisor:
        other = supervisor.kept["b"]
        await other.wait_running()
        await supervisor.declare("b", "stopped", powerdown_grace=0)
        await supervisor.declare("b", "running")
        assert other.vm is not None
        assert f"{nic.id}: index" in (await hmp(other.vm, "info network")).replace("\r", "")
        await other.vm.agent.wait_ready()
        await address(supervisor, "b", "10.0.0.2")
        assert await hears(other, "10.0.0.1")
        await other.vm.nics.add(UserNic())
        await supervisor.leave("b", nic.id)
        await agreed(other.vm)
        assert [it.id for it in other.spec.nics] == ["nic1"]
        assert ports(places) == [] and not other.record.plugged
    await end_all()


TWO = """
[machines.b]
profile = "tiny"
networks = ["left"]
"""


async def test_a_guest_leaves_the_network_of_its_file(
    qemu: str, tmp_path: Path, places: Places
) -> None:
    farm = tmp_path / "farm.toml"
    farm.write_text(FARM.format(qemu=qemu, kind="stream").partition("[machines.a]")[0] + TWO)
    async with lab() as supervisor:
        await up(supervisor, load_farm(farm))
        kept = supervisor.kept["b"]
        assert kept.vm is not None
        await kept.vm.agent.wait_ready()
        assert ports(places) == ["b.nic0"]
        await supervisor.leave("b", "nic0")
        assert not [*places.runtime.glob("lab/.net")], "it was the only one there"
        nic = await supervisor.join("b", "left")
        assert (nic.id, ports(places)) == ("nic0", ["b.nic0"])
        await supervisor.leave("b", nic.id)
        other = await kept.vm.nics.add(UserNic())
        assert other.id == "nic0"
        await supervisor.declare("b", "stopped", powerdown_grace=0)
        await supervisor.declare("b", "running")
        assert kept.spec.nics == (other,)
        assert not [*places.runtime.glob("lab/.net")]
    await end_all()
