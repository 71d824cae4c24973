"""Tap NICs that are bound: by the kernel, from the start, changed while they run, free after."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest

import qmpkit
from qmpkit import HostLacks, MachineSpec, SpecInvalid, TapNic
from qmpkit.host.netlink import opened_netlink
from qmpkit.host.tap_rates import Rate, set_rate
from qmpkit.networks.devices import may_make_devices
from qmpkit.operations.tune.nic_rates import freed
from qmpkit.spec.check import faults_of
from tests.sizes import NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.skipif(not may_make_devices(), reason="no CAP_NET_ADMIN or no /dev/net/tun"),
]


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"qkt{os.getpid()}"
    with opened_netlink("make a tap device") as route:
        route.link("add", ifname=name, kind="tuntap", mode="tap")
        yield name
        route.link("del", index=route.link_lookup(ifname=name)[0])


def bound(name: str) -> dict[str, int]:
    """The kinds of queueing on a device, with the rate in bytes of those that have one."""
    found = {}
    with opened_netlink("look") as route:
        index = route.link_lookup(ifname=name)[0]
        for qdisc in route.get_qdiscs(index):
            options = qdisc.get_attr("TCA_OPTIONS")
            kind = qdisc.get_attr("TCA_KIND")
            if kind in ("tbf", "ingress"):
                parameters = options.get_attr("TCA_TBF_PARMS") if kind == "tbf" else None
                found[kind] = parameters["rate"] if parameters else 0
    return found


def spec(qemu: str, tap: str, **rates: object) -> MachineSpec:
    nic = TapNic(ifname=tap, **rates)  # type: ignore[arg-type]
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", nics=[nic])


async def test_from_the_start_to_the_end(qemu: str, tap: str) -> None:
    async with qmpkit.running(spec(qemu, tap, max_received="1MiB"), paused=True) as vm:
        assert bound(tap) == {"tbf": 1 << 20}
        nic = vm.spec.nics[0]
        assert isinstance(nic, TapNic)
        faster = attrs.evolve(nic, max_received="2MiB")
        done = await vm.tune.apply(attrs.evolve(vm.spec, nics=[faster]))
        assert done.changed == ("nics[0].max_received",)
        assert bound(tap) == {"tbf": 2 << 20}
        free = attrs.evolve(faster, max_received=None)
        await vm.tune.apply(attrs.evolve(vm.spec, nics=[free]))
        assert bound(tap) == {}
        await vm.tune.apply(attrs.evolve(vm.spec, nics=[faster]))
        assert vm.spec.nics == (faster,)
        stats = await vm.stats()
        assert set(stats.nics) == {"nic0"}
    assert bound(tap) == {}


async def test_plugged_and_unplugged(qemu: str, tap: str) -> None:
    plain = attrs.evolve(spec(qemu, tap), nics=[], root_ports=2)
    async with qmpkit.running(plain, paused=True) as vm:
        await vm.nics.add(TapNic(ifname=tap, id="more", max_received="1MiB"))
        assert bound(tap) == {"tbf": 1 << 20}
        handed = TapNic(id="other", max_received="1MiB")
        with pytest.raises(SpecInvalid, match="is bound by who has made it"):
            await vm.nics.add(handed, fd=0)
        with pytest.raises(SpecInvalid, match="is the device of 'more'"):
            await vm.nics.add(TapNic(ifname=tap, id="third", max_received="3MiB"))
        assert bound(tap) == {"tbf": 1 << 20}
    assert bound(tap) == {}


async def test_a_device_that_was_given_away_stays_bound(qemu: str, tap: str) -> None:
    plain = attrs.evolve(spec(qemu, tap), nics=[], root_ports=2)
    async with qmpkit.running(plain, paused=True) as vm:
        nic = await vm.nics.add(TapNic(ifname=tap, max_received="1MiB"))
        vm.machine.spec = attrs.evolve(vm.spec, nics=[])  # as when its guest has let go of it
        await freed(nic)
        assert bound(tap) == {}
        set_rate(tap, Rate(2 << 20, None))
    assert bound(tap) == {"tbf": 2 << 20}, "by who has it now"


async def test_what_the_guest_sends(qemu: str, tap: str) -> None:
    """Where the kernel cannot police, that is told and nothing is left."""
    wanted = spec(qemu, tap, max_received="1MiB", max_sent="1MiB")
    try:
        async with qmpkit.running(wanted, paused=True):
            assert set(bound(tap)) == {"tbf", "ingress"}
    except HostLacks as lacks:
        assert "this kernel cannot bound what" in str(lacks)
    assert bound(tap) == {}


async def test_what_somebody_else_has_put_there_stays(qemu: str, tap: str) -> None:
    with opened_netlink("bound it") as route:
        index = route.link_lookup(ifname=tap)[0]
        route.tc("add", "tbf", index, 0x10000, rate=12345, latency="50ms", burst=65536)
    with pytest.raises(HostLacks, match=r"cannot bound the traffic of the device .*File exists"):
        async with qmpkit.running(spec(qemu, tap, max_received="1MiB"), paused=True):
            pass
    assert bound(tap) == {"tbf": 12345}


def test_rates_are_checked() -> None:
    nic = TapNic(ifname="tap0", max_sent=3)
    (fault,) = faults_of(MachineSpec(nics=[nic]))
    assert str(fault) == "nics[0].max_sent: 3B a second is less than 1KiB"
