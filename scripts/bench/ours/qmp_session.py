"""Our side of the QMP metrics: qmpkit's session."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any

import trio

from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session


async def one_by_one(qmp: Session, count: int) -> None:
    for _ in range(count):
        await qmp.execute("query-status")


async def many_at_once(qmp: Session, count: int, window: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(window):
            nursery.start_soon(one_by_one, qmp, count // window)


async def measure(sock: socket.socket, load: dict[str, Any]) -> dict[str, float]:
    count, window = load["commands"], load["window"]
    async with open_session(sock, name="bench") as qmp:
        await one_by_one(qmp, 100)
        cpu, started = time.process_time(), time.perf_counter()
        await one_by_one(qmp, count)
        ended, burnt = time.perf_counter(), time.process_time() - cpu
        await many_at_once(qmp, 100, window)
        piped = time.perf_counter()
        await many_at_once(qmp, count, window)
        done = time.perf_counter()
    sent = count // window * window
    return {
        "round_trip": (ended - started) / count,
        "cpu": burnt / count,
        "pipelined": (done - piped) / sent,
    }


def main() -> None:
    load = json.loads(sys.argv[1])
    ours, theirs = socket.socketpair()
    argv = [word.replace("{fd}", str(theirs.fileno())) for word in load["argv"]]
    with theirs:
        qemu = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL)
    try:
        print(json.dumps(trio.run(measure, ours, load)))
    finally:
        qemu.kill()
        qemu.wait()


main()
