"""Limits of control groups held by a real kernel, that of a Debian guest; `--long` alone.

A program that does nothing but burn its processor stands in QEMU's place.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live.test_systemd_guest import Guest, debian
from tests.sizes import LONG, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(NEWEST[-1]),
    pytest.mark.skipif(not LONG, reason="two minutes: scripts/test --long"),
]

PROGRAM = """
import json, time, trio
from qmpkit.machine.grouping import grouped, limit
from qmpkit.process.cgroup import base_of, group_of, sweep
from qmpkit.process.child import child
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.resources import Resources, controllers

def spent(pid):
    words = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100

async def share(pid, seconds):
    start, before = time.monotonic(), spent(pid)
    await trio.sleep(seconds)
    return (spent(pid) - before) / (time.monotonic() - start)

async def main():
    told = {}
    first = Resources(cpu_max=0.25, memory_max="64MiB", pids_max=5)
    async with grouped(MachineSpec(name="web", resources=first)) as group:
        burner = child(["sh", "-c", "while :; do :; done"], group=group)
        async with burner as process:
            told["group"] = str(group_of(process.pid).path)
            told["quarter"] = await share(process.pid, 20)
            limit(group, Resources(cpu_max=0.5, memory_max="64MiB"), controllers(first))
            told["half"] = await share(process.pid, 20)
            told["pids"] = group.read("pids.max")
            told["pressure"] = group.pressure("cpu").some[0]
            limit(group, Resources(), controllers(first))
            told["free"] = await share(process.pid, 5)
        eater = child(["python3", "-c", "x = bytearray(1 << 28)"], group=group)
        limit(group, Resources(memory_max="64MiB"), ())
        group.write({"memory.swap.max": "0"})
        async with eater as process:
            told["killed"] = (await process.wait()).signal
    # Where we are ourselves, when what was handed to us was our own group.
    found = {path.name for path in base_of().path.glob("qmpkit-*")} - {"qmpkit-main"}
    told["left"] = sorted(found)
    print(json.dumps(told))

trio.run(main)
"""


@pytest.mark.bound(600)
async def test_a_burner_has_its_share_and_no_more(tmp_path: Path, qemu: str) -> None:
    async with debian(tmp_path, qemu) as guest:
        await guest.vm.agent.write_file("/root/limits.py", PROGRAM.encode())
        await _as_root(guest)
        await _as_a_user(guest)


async def _as_root(guest: Guest) -> None:
    told = json.loads(await guest.says("PYTHONPATH=/mnt/site python3 /root/limits.py"))
    assert told["group"].startswith("/sys/fs/cgroup/qmpkit.slice/qmpkit-web-")
    assert told["quarter"] == pytest.approx(0.25, rel=0.1)
    assert told["half"] == pytest.approx(0.5, rel=0.1)
    assert told["free"] > 0.7
    assert told["pressure"] > 10
    assert told["pids"] == "max"
    assert told["killed"] == 9
    assert told["left"] == []


async def _as_a_user(guest: Guest) -> None:
    """Rootless, in a service's group that systemd delegates: we go out of its way first."""
    await guest.says("install -m 644 /root/limits.py /tmp/limits.py")
    run = "systemd-run --wait --pipe -q -p User=grace -p Delegate=yes -E PYTHONPATH=/mnt/site"
    told = json.loads(await guest.says(f"{run} python3 /tmp/limits.py"))
    assert ".service/qmpkit-web-" in told["group"]
    assert told["quarter"] == pytest.approx(0.25, rel=0.1)
    assert told["half"] == pytest.approx(0.5, rel=0.1)
    assert told["killed"] == 9
    assert told["left"] == []
