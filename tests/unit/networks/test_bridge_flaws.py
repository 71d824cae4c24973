"""What is seen of bridges and taps that are not as they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import HostLacks
from qmpkit.networks import bridges
from qmpkit.networks.bridges import Bridges
from qmpkit.networks.devices import Device
from qmpkit.networks.farm_networks import FarmNetworks
from qmpkit.networks.helpers import helpers
from qmpkit.process.places import Places
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_networks import Bridge, Nat
from qmpkit.spec.names import tap_name

OWNER = "qmpkit /state"
TAP = tap_name(OWNER, "a", "lan")
MADE = Bridge(bridge="br", make=True, subnet="10.0.0.0/24", address="10.0.0.1")
THERE = {
    "br": Device(owner=OWNER, addresses=frozenset({"10.0.0.1/24"})),
    TAP: Device(owner=OWNER, bridge="br"),
}
PLACES = Places(Path("/state"), Path("/run"))


async def _look(
    monkeypatch: pytest.MonkeyPatch,
    devices: Mapping[str, Device] | HostLacks,
    network: Bridge,
    *,
    may: bool = True,
) -> list[tuple[str, Flaw]]:
    def seen() -> Mapping[str, Device]:
        if isinstance(devices, HostLacks):
            raise devices
        return devices

    monkeypatch.setattr(bridges, "all_devices", seen)
    monkeypatch.setattr(bridges, "may_make_devices", lambda: may)
    async with helpers(PLACES.state, lambda name: Path(name)) as programs:
        return await Bridges(PLACES, programs).look(
            [("a", Joined(name="lan", network=network, nic="nic0"))]
        )


@pytest.mark.parametrize(
    ("name", "change", "said", "mendable"),
    [
        ("br", None, "the bridge 'br' of network 'lan': removed", True),
        ("br", {"owner": "me"}, "the bridge 'br' of network 'lan': another device has", True),
        ("br", {"addresses": frozenset()}, "'lan': without its address 10.0.0.1/24", True),
        ("br", {"is_up": False}, "the bridge 'br' of network 'lan': down", True),
        (TAP, None, f"the tap device of nic0 of network 'lan': removed ({TAP})", False),
        (TAP, {"has_carrier": False}, "'lan': removed", False),  # one that QEMU has not open
        (TAP, {"owner": None}, "'lan': removed", False),
        (TAP, {"bridge": None}, f"'lan': not on 'br' ({TAP})", True),
        (TAP, {"is_up": False}, f"'lan': down ({TAP})", True),
    ],
)
async def test_each_difference_is_told(
    name: str,
    change: dict[str, Any] | None,
    said: str,
    mendable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await _look(monkeypatch, THERE, MADE) == []
    devices = {**THERE}
    if change is None:
        del devices[name]
    else:
        devices[name] = attrs.evolve(devices[name], **change)
    ((member, flaw),) = await _look(monkeypatch, devices, MADE)
    assert (member, flaw.mendable) == ("a", mendable)
    assert said in flaw.what


async def test_a_bridge_of_the_hosts_is_only_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Bridge(bridge="br")
    devices = {"br": Device(is_up=False), TAP: THERE[TAP]}
    assert await _look(monkeypatch, devices, own) == []
    ((_, flaw),) = await _look(monkeypatch, {TAP: THERE[TAP]}, own, may=False)
    assert flaw == Flaw("the bridge 'br' of network 'lan': removed", mendable=True)
    assert await _look(monkeypatch, {"br": Device()}, own, may=False) == []  # a tap that was lent


async def test_devices_that_cannot_be_seen_are_told_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacks = HostLacks("cannot look at network devices: pyroute2 is not installed")
    ((member, flaw),) = await _look(monkeypatch, lacks, MADE)
    assert (member, flaw.mendable) == ("a", True)  # whoever makes them raises it
    assert "pyroute2" in flaw.what


async def test_networks_that_nobody_carries_are_not_looked_at(tmp_path: Path) -> None:
    networks = FarmNetworks()
    out = Joined(name="out", network=Nat(), nic="nic0")
    (tmp_path / "run").mkdir()
    async with networks.open(Places(tmp_path, tmp_path / "run"), {}):
        assert await networks.look({"a": [out]}) == {}
