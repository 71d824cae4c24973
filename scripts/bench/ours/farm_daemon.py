"""Our side of the farm metrics: a daemon of ours, asked over its socket.

`stats` has no place in the API yet: a program that has the supervisor asks every QEMU itself.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import trio
from farm_spec import spec

from qmpkit import Supervisor
from qmpkit.cli.daemon import Daemon, find_daemon
from qmpkit.cli.farm_jobs import followed
from qmpkit.cli.serve import detach
from qmpkit.supervisor.kept import Kept

FARM = "daemon"
LISTS = 15
QUESTIONS = ("query-status", "query-cpus-fast", "query-blockstats", "query-iothreads")


async def declared(machines: int) -> float:
    """Have the machines on record, stopped; what it took to ask all of them while they were up."""
    async with Supervisor(FARM, keep=True) as lab:
        async with trio.open_nursery() as nursery:
            for number in range(machines):
                nursery.start_soon(lambda it: lab.ensure(it, paused=True), spec(number))
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for kept in lab.kept.values():
                nursery.start_soon(asked, kept)
        took = time.perf_counter() - begun
        await lab.stop_kept(powerdown_grace=0.0)
    return took


async def asked(kept: Kept) -> None:
    """What libvirt's statistics of a domain are made of."""
    assert kept.vm is not None
    for question in QUESTIONS:
        await kept.vm.execute(question)
    Path(f"/proc/{kept.pid}/stat").read_text()  # noqa: ASYNC240 (never waits)


def did(daemon: Daemon, name: str, action: str) -> float:
    """An action on one machine, to the end of its job."""
    begun = time.perf_counter()
    job = daemon.post("machines", name, action, body={"grace": 0} if action == "stop" else {})
    followed(daemon, job["job"], f"{action} of {name}", quiet=True)
    return time.perf_counter() - begun


def listed(daemon: Daemon, machines: int) -> float:
    begun = time.perf_counter()
    rows = daemon.get("machines")["machines"]
    took = time.perf_counter() - begun
    assert [row["state"] for row in rows] == ["paused"] * machines
    return took


def memory(pid: int) -> int:
    """The resident bytes of a process and of its children, which for us is the spawner."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(memory(int(child)) for child in children)


def main() -> None:
    machines = json.loads(sys.argv[1])["machines"]
    names = [spec(number).name for number in range(machines)]
    stats = trio.run(declared, machines)
    detach(FARM)
    daemon = find_daemon(FARM)
    try:
        start = [did(daemon, name, "pause") for name in names]  # which starts one that is down
        lists = [listed(daemon, machines) for _ in range(LISTS)]
        rss = memory(daemon.get()["pid"])
        stop = [did(daemon, name, "stop") for name in names]
    finally:
        for name in names:
            did(daemon, name, "stop")
        daemon.post("shutdown")
    figures: dict[str, list[float]] = {
        "start": start,
        "list": lists,
        "stats": [stats],
        "stop": stop,
    }
    figures["daemon_rss"] = [rss]
    print(json.dumps({name: statistics.median(values) for name, values in figures.items()}))


main()
