"""Checks of a real guest: its agent, its ports, its console; and the end of one that fails."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, Forward, Restart, UserNic
from qmpkit.spec.health import AgentCheck, ConsoleCheck, Health, HttpCheck, TcpCheck
from qmpkit.supervisor.checks import CheckFailed, checked
from qmpkit.supervisor.health import Healthy
from qmpkit.testing.leaks import leaks
from qmpkit.vm import VM
from tests.live.kept import end_all, lab
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]

_NETWORK = "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"
_WRITES = "dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync; echo written: $?"
_SERVER = "mkdir /www && echo ok > /www/index.html && httpd -p 80 -h /www"


async def test_a_guest_is_checked_and_replaced_when_it_fails(qemu: str) -> None:
    tiny = qmpkit.load_profile("tiny-microvm")
    nic = UserNic(forwards=(Forward(0, 80), Forward(0, 81)))
    spec = attrs.evolve(tiny, qemu=qemu, accel="tcg", nics=[nic])
    health = Health(
        checks=(AgentCheck(), ConsoleCheck("tiny#")),
        interval=0.2,
        timeout=10,
        start_period=60,
        retries=2,
    )
    again = Restart(policy="on-failure", delay=0, jitter=0)
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, health=health, restart=again)
            await kept.until(lambda: isinstance(kept.health, Healthy))
            assert kept.vm is not None
            await _ports(kept.vm)
            first = kept.pid
            # Its agent is gone, though its channel is not: the checks' own bound tells.
            await kept.vm.console.send_line("killall -STOP qemu-ga")
            strict = attrs.evolve(health, timeout=0.5, start_period=0)
            await supervisor.ensure(spec, health=strict, restart=again)
            await kept.until(lambda: kept.pid not in (first, None))
            assert kept.end is not None
            assert kept.end.cause.value == "unhealthy"
        await end_all()


async def test_a_guest_that_a_full_disk_has_stopped_goes_on(qemu: str, tmp_path: Path) -> None:
    tiny = qmpkit.load_profile("tiny-microvm")
    async with leaks():
        with small_disk(tmp_path / "small", mib=4) as small:
            disk = Disk(str(small.path / "it.raw"), format="raw", make="64MiB")
            async with lab() as supervisor:
                spec = attrs.evolve(tiny, qemu=qemu, accel="tcg", disks=[disk])
                kept = await supervisor.ensure(spec, restart="never")
                assert kept.vm is not None
                await kept.vm.console.expect("tiny#")
                small.fill()
                await kept.vm.console.send_line(_WRITES)
                await kept.until(lambda: kept.state == "failed")
                await supervisor.declare(spec.name, "paused")
                small.free()
                await supervisor.declare(spec.name, "running")
                await kept.vm.console.expect("written: 0")
            await end_all()


async def _ports(vm: VM) -> None:
    await vm.agent.run(["sh", "-c", "ip link set eth0 down"], check=True)
    with trio.move_on_after(1) as bound:
        await checked(TcpCheck(80), vm)
    assert bound.cancelled_caught, "the guest is not on the network"
    await vm.agent.run(["sh", "-c", f"{_NETWORK}; {_SERVER}"], check=True)
    await checked(TcpCheck(80), vm)
    await checked(HttpCheck(80), vm)
    with pytest.raises(CheckFailed, match="404"):
        await checked(HttpCheck(80, "/nothing"), vm)
    with pytest.raises(CheckFailed, match="refuses connections"):
        await checked(TcpCheck(81), vm)
