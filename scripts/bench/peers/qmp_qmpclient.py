"""A peer of the QMP metrics: qemu.qmp's own QMPClient, on asyncio."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from typing import Any

from qemu.qmp import QMPClient


async def one_by_one(client: QMPClient, count: int) -> None:
    for _ in range(count):
        await client.execute("query-status")


async def many_at_once(client: QMPClient, count: int, window: int) -> None:
    await asyncio.gather(*(one_by_one(client, count // window) for _ in range(window)))


async def measure(sock: socket.socket, load: dict[str, Any]) -> dict[str, float]:
    count, window = load["commands"], load["window"]
    client = QMPClient("bench")
    sock.setblocking(False)
    await client.connect(sock)
    await one_by_one(client, 100)
    cpu, started = time.process_time(), time.perf_counter()
    await one_by_one(client, count)
    ended, burnt = time.perf_counter(), time.process_time() - cpu
    await many_at_once(client, 100, window)
    piped = time.perf_counter()
    await many_at_once(client, count, window)
    done = time.perf_counter()
    await client.disconnect()
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
        print(json.dumps(asyncio.run(measure(ours, load))))
    finally:
        qemu.kill()
        qemu.wait()


main()
