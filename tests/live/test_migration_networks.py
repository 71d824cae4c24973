"""Kept machines that move to another process and are in networks of their farm all the while."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from qmpkit import Kept, MigrationFailed, MigrationOptions, Round, Step, Supervisor
from qmpkit.farm.converge import up
from qmpkit.spec.farm_load import load_farm
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, count, end_all, lab
from tests.live.test_networks import hears, ready, said
from tests.sizes import CABLE_CANCELS, CABLE_KILLS, LONG, NEWEST, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.bound(1800 if LONG else 300)]

NETWORKS = """
schema = 1
[networks.left]
kind = "segment"
[networks.right]
kind = "segment"
socket = "stream"
[networks.out]
kind = "nat"
"""
# RAM of any multiple of 256 KiB is not safe from 7.2 under TCG.
LINUX = """
[defaults]
qemu = "{qemu}"
accel = "tcg"
profile = "tiny-microvm"
memory = "131088KiB"
restart = "never"
[machines.a]
networks = ["left", "right"]
[machines.b]
networks = ["left", "right", "out"]
"""
TINY = """
[machines.b]
qemu = "{qemu}"
accel = "tcg"
profile = "kvm-tiny"
machine = "pc-q35-7.2"
memory = "16400KiB"
cpu = {{ model = "Nehalem" }}
restart = "never"
networks = ["left", "right", "out"]
"""
STUCK = MigrationOptions(max_bandwidth="1KiB", downtime=0.001)
SLOW = MigrationOptions(max_bandwidth="16MiB")


@pytest.fixture
def farm(tmp_path: Path, qemu: str, places: Places) -> Path:
    path = tmp_path / "farm.toml"
    path.write_text(NETWORKS + LINUX.format(qemu=qemu))
    return path


async def brought_up(supervisor: Supervisor, farm: Path) -> tuple[Kept, Kept]:
    """Both hear each other, by datagrams in 10.0.0.0/24 and by a stream in 10.0.1.0/24."""
    assert (await up(supervisor, load_farm(farm))).went_well
    await ready(supervisor)
    for host, name in enumerate("ab", start=1):
        for net in (0, 1):
            script = f"ip link set eth{net} up; ip addr add 10.0.{net}.{host}/24 dev eth{net}"
            assert await said(supervisor.kept[name], script)
    a, b = supervisor.kept["a"], supervisor.kept["b"]
    await hear_each_other(a, b)
    return a, b


async def hear_each_other(a: Kept, b: Kept) -> None:
    for net in (0, 1):
        assert await hears(a, f"10.0.{net}.2") and await hears(b, f"10.0.{net}.1")


def ports(places: Places) -> list[str]:
    """The sockets of b in the segment of datagrams, as it has one place there."""
    folder = places.runtime / "lab" / ".net" / "left"
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("b"))


async def is_one(places: Places, b: Kept) -> None:
    assert ports(places) == [f"{b.member}.nic0"]
    assert len(places.qemus()) == 2 and b.record.heir is None


BEGIN = """
for net in 0 1; do
  ping -i 0.2 10.0.$net.2 >/tmp/ping$net 2>&1 & echo $! >>/tmp/pids
  arping -b -I eth$net 10.0.$net.2 >/tmp/arping$net 2>&1 & echo $! >>/tmp/pids
done
"""
END = "kill -INT $(cat /tmp/pids); sleep 1; cat /tmp/ping* /tmp/arping*; rm /tmp/pids"


def sent_and_received(text: str, pattern: str) -> list[tuple[int, int]]:
    found = [(int(sent), int(received)) for sent, received in re.findall(pattern, text)]
    assert len(found) == 2, text
    return found


@pytest.mark.skipif(not LONG, reason="three Linux guests, half a minute: with --long")
@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_who_speaks_to_it_never_notices(farm: Path, places: Places) -> None:
    """No frame comes twice either: one that all hear is there for two of it meanwhile."""
    async with leaks():
        async with lab() as supervisor:
            a, b = await brought_up(supervisor, farm)
            assert a.vm is not None
            assert await supervisor.migration_faults("b") == ()
            assert await said(a, BEGIN)
            for member in ("b~", "b", "b~"):
                await supervisor.migrate("b", options=SLOW)
                assert b.member == member
                await is_one(places, b)
            heard = (await a.vm.agent.run(["sh", "-c", END])).stdout.decode()
            for sent, received in sent_and_received(heard, r"(\d+) packets tr\w+, (\d+) packets"):
                assert sent > 10 and sent - 6 <= received <= sent, heard
            assert "duplicates" not in heard and "DUP" not in heard
            for probes, replies in sent_and_received(heard, r"Sent (\d+) probe.*\nReceived (\d+)"):
                assert 0 < replies <= probes, heard
            await hear_each_other(a, b)
        async with lab() as supervisor:  # one that has moved is found at its second place
            a, b = supervisor.kept["a"], supervisor.kept["b"]
            await b.wait_running()
            await hear_each_other(a, b)
            assert b.member == "b~"
            await supervisor.declare("b", "stopped", powerdown_grace=0)
            await supervisor.declare("b", "running")
            await is_one(places, b)
            assert b.member == "b"
        await end_all()
    assert not list(places.runtime.rglob("*/.net"))


PROGRAM = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.kept:Kept", "write")
step("qmpkit.networks.farm_networks:FarmNetworks", "make")
step("qmpkit.networks.farm_networks:FarmNetworks", "drop")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        qemu, armed = lab.kept["b"].pid, True
        await lab.migrate("b")
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.qemus(*NEWEST)
async def test_whatever_fails_it_has_one_place_in_each(
    qemu: str, tmp_path: Path, places: Places
) -> None:
    """A move that fails or is cancelled, and a supervisor that is killed."""
    guests.build_kvm_tiny()
    farm = tmp_path / "farm.toml"
    farm.write_text(NETWORKS + TINY.format(qemu=qemu))
    every, last = (1, 1) if LONG else (36 // CABLE_KILLS, 6)
    async with leaks():
        async with lab() as supervisor:
            assert (await up(supervisor, load_farm(farm))).went_well
            b = supervisor.kept["b"]
            had = await counts_on(places, b, 0)
            with pytest.raises(MigrationFailed, match="enough"):
                await supervisor.migrate(
                    "b", policy=lambda _: Step(give_up="enough"), options=STUCK
                )
            had = await counts_on(places, b, had)
            before = b.member
            assert before == "b"

            async def move() -> None:
                nonlocal before
                before = b.member
                await supervisor.migrate("b")

            async def after() -> None:
                nonlocal had
                had = await counts_on(places, b, had)

            await cancel_at_every_checkpoint(move, every=CABLE_CANCELS, after=after)
            assert b.member != before  # one that was cancelled late may have moved all the same
            assert await supervisor.network_flaws() == {}, "its second place is as good"
        begun = last
        while await dies(PROGRAM, last=last):
            last += every
            async with lab() as supervisor:
                b = supervisor.kept["b"]
                had = await counts_on(places, b, had)
                assert b.end is None
        assert last > begun
        await end_all()
    assert not list(places.runtime.rglob("*/.net"))


def given_up(_: Round) -> Step:
    return Step(give_up="enough")


async def counts_on(places: Places, b: Kept, had: int) -> int:
    """Its guest goes on, in one process that has one place in each network; how far it is."""
    await b.wait_running()
    now = await count(b)
    assert now >= had
    with trio.fail_after(30):  # the other goes when it has ended
        while len(ports(places)) != 1:  # noqa: ASYNC110
            await trio.sleep(0.02)
    assert ports(places) == [f"{b.member}.nic0"]
    assert len(places.qemus()) == 1 and b.record.heir is None
    return now
