"""Segments with real guests: they hear each other and nobody else, whoever supervises them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from qmpkit import Kept, Supervisor
from qmpkit.farm.converge import plan_up, up
from qmpkit.spec.farm_load import load_farm
from qmpkit.testing.leaks import living_with
from tests.live.kept import Places, end_all, kill, lab
from tests.sizes import LONG, NEWEST, OLDEST, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST), pytest.mark.bound(180)]

DEFAULTS = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
profile = "tiny-microvm"
[networks.left]
kind = "segment"
[networks.right]
kind = "segment"
socket = "stream"
"""
FARM = """
[machines.a]
networks = ["left"]
[machines.b]
networks = ["left", "right"]
[machines.c]
networks = ["right"]
"""
STREAMS = """
[machines.b]
networks = ["right"]
[machines.c]
networks = ["right"]
"""


@pytest.fixture
def farm(tmp_path: Path, qemu: str, places: Places) -> Path:
    path = tmp_path / "farm.toml"
    path.write_text(DEFAULTS.format(qemu=qemu) + FARM)
    return path


@pytest.fixture
def streams(tmp_path: Path, qemu: str, places: Places) -> Path:
    path = tmp_path / "streams.toml"
    path.write_text(DEFAULTS.format(qemu=qemu) + STREAMS)
    return path


def switches(places: Places) -> list[int]:
    """The living switches that were started under these directories."""
    return [
        pid
        for pid in living_with(f"QMPKIT_RUNTIME_DIR={places.runtime}")
        if b"_switch_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def kill_the_one_of(network: str, pids: list[int]) -> None:
    for pid in pids:
        if f"/{network}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


async def said(kept: Kept, script: str) -> bool:
    """Whether the script went well in the guest."""
    assert kept.vm is not None
    return (await kept.vm.agent.run(["sh", "-c", script])).ok


async def hears(kept: Kept, address: str) -> bool:
    return await said(kept, f"for n in 1 2 3 4 5 6; do ping -c 1 -W 2 {address} && exit; done")


async def give_addresses(supervisor: Supervisor) -> None:
    """One NIC a guest is in 10.0.0.0/24 on both segments: only the cables keep them apart."""
    own = {"a": ["10.0.0.1"], "b": ["10.0.0.2", "10.0.1.2"], "c": ["10.0.1.3"]}
    for name, addresses in own.items():
        for number, address in enumerate(addresses):
            await give_address(supervisor.kept[name], address, number)


async def give_address(kept: Kept, address: str, number: int = 0) -> None:
    script = f"ip link set eth{number} up; ip addr add {address}/24 dev eth{number}"
    assert await said(kept, script)


async def ready(supervisor: Supervisor) -> None:
    async with trio.open_nursery() as nursery:
        for kept in supervisor.kept.values():
            assert kept.vm is not None
            nursery.start_soon(kept.vm.agent.wait_ready)


async def test_guests_hear_each_other_by_segment_and_not_across(farm: Path, places: Places) -> None:
    with trio.fail_after(170):
        async with lab() as supervisor:
            assert (await up(supervisor, load_farm(farm))).went_well
            await ready(supervisor)
            await give_addresses(supervisor)
            a, b, c = (supervisor.kept[name] for name in "abc")
            assert await hears(a, "10.0.0.2") and await hears(b, "10.0.0.1")
            assert await hears(b, "10.0.1.3") and await hears(c, "10.0.1.2")
            # c on a's network: nothing but the cable is between them.
            assert await said(c, "ip addr add 10.0.0.3/24 dev eth0")
            assert not await said(a, "ping -c 2 -W 1 10.0.0.3")
            before = switches(places)
            assert len(before) == 2
        assert switches(places) == before  # they outlive their supervisor, as the guests do
        kill_the_one_of("left", before)
        async with lab() as supervisor:
            a, b, c = (supervisor.kept[name] for name in "abc")
            assert await hears(a, "10.0.0.2"), "the next supervisor starts the switch again"
            assert await hears(b, "10.0.1.3"), "and leaves alone the one that lives"
            assert len(switches(places)) == 2
            kill_the_one_of("right", switches(places))
            assert await hears(c, "10.0.1.2") and await hears(b, "10.0.1.3")
            await supervisor.declare("c", "stopped")
            await supervisor.forget("c")
            assert len(switches(places)) == 2  # b is still there
            await supervisor.declare("b", "stopped")
            await supervisor.forget("b")
            assert len(switches(places)) == 1
            await supervisor.declare("a", "stopped")
            await supervisor.forget("a")
            assert not switches(places)
    assert not list(places.runtime.rglob("*/.net")) and not list(places.state.rglob("helpers.json"))


IDLE = """
[machines.a]
profile = "q35"
memory = "32MiB"
networks = ["left", "right"]
"""


@pytest.mark.qemus(*QEMU_VERSIONS)  # whether a listening one keeps its path
async def test_a_port_that_somebody_removes_is_told_until_a_restart(
    tmp_path: Path, qemu: str, places: Places
) -> None:
    path = tmp_path / "idle.toml"
    path.write_text(DEFAULTS.format(qemu=qemu) + IDLE)
    farm = load_farm(path)
    with trio.fail_after(170):
        async with lab() as supervisor:
            await up(supervisor, farm)
        async with lab() as supervisor:  # which has adopted it
            assert (await plan_up(supervisor, farm)).is_empty
            ports = [*places.runtime.rglob("a.nic0"), *places.runtime.rglob("@a.nic1")]
            for port in ports:
                port.unlink()
            for _ in range(2):
                outcome = (await up(supervisor, farm)).machines["a"]
                assert outcome.did == "restart-needed"
                assert "the port of nic0 of network 'left': removed" in outcome.why
                assert "the port of nic1 of network 'right': removed" in outcome.why
            await up(supervisor, farm, restart=True)
            assert (await plan_up(supervisor, farm)).is_empty
            assert len(ports) == 2 and all(port.is_socket() for port in ports)
        await end_all()


@pytest.mark.skipif(not LONG, reason="four guests boot: with --long")
@pytest.mark.qemus(*NEWEST)
async def test_a_stream_is_connected_again_whoever_dies(streams: Path, places: Places) -> None:
    with trio.fail_after(170):
        async with lab() as supervisor:
            assert (await up(supervisor, load_farm(streams))).went_well
            await ready(supervisor)
            b, c = (supervisor.kept[name] for name in "bc")
            await give_address(b, "10.0.1.2")
            await give_address(c, "10.0.1.3")
            assert await hears(b, "10.0.1.3") and await hears(c, "10.0.1.2")
            pids = {b.pid, c.pid}
            kill_the_one_of("right", switches(places))
            assert await hears(b, "10.0.1.3") and await hears(c, "10.0.1.2")
            assert {b.pid, c.pid} == pids
            assert c.pid is not None
            kill(c.pid)
            await c.wait_rest()
            await supervisor.declare("c", "running")
            await ready(supervisor)
            await give_address(c, "10.0.1.3")
            assert await hears(b, "10.0.1.3") and await hears(c, "10.0.1.2")
            assert b.pid in pids
        await end_all()
    assert not switches(places) and not list(places.runtime.rglob("*/.net"))
