"""The floor of the start metrics: Popen, greeting, capabilities, `cont`, its reply."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, BinaryIO


def execute(lines: BinaryIO, sock: socket.socket, command: str) -> None:
    sock.sendall(json.dumps({"execute": command}).encode() + b"\n")
    while "return" not in json.loads(lines.readline()):
        pass  # an event


def start_once(load: dict[str, Any]) -> float:
    started = time.perf_counter()
    pairs = [socket.socketpair() for _ in range(load["sockets"])]
    theirs = [its.fileno() for _, its in pairs]
    argv = [word.format(*theirs) if word.startswith("socket,") else word for word in load["argv"]]
    qemu = subprocess.Popen(argv, pass_fds=theirs, stderr=subprocess.PIPE)
    for _, its in pairs:
        its.close()
    monitor = pairs[0][0]
    with monitor.makefile("rb") as lines:
        json.loads(lines.readline())
        execute(lines, monitor, "qmp_capabilities")
        execute(lines, monitor, "cont")
        took = time.perf_counter() - started
        execute(lines, monitor, "quit")
        qemu.communicate()
    for ours, _ in pairs:
        ours.close()
    return took


def main() -> None:
    load = json.loads(sys.argv[1])
    first = start_once(load)
    running = [start_once(load) for _ in range(load["starts"])]
    print(json.dumps({"first": first, "running": statistics.median(running)}))


main()
