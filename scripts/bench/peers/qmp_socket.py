"""The floor of the QMP metrics: a blocking socket that sends an id and parses each reply."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any, BinaryIO


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines: BinaryIO = sock.makefile("rb")
        self._last = 0
        json.loads(self._lines.readline())
        self.execute("qmp_capabilities")

    def send(self, command: str) -> int:
        self._last += 1
        message = {"execute": command, "id": self._last}
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        return self._last

    def reply(self) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._lines.readline())
            if "event" not in message:
                return message

    def execute(self, command: str) -> Any:
        ident = self.send(command)
        message = self.reply()
        assert message["id"] == ident
        return message["return"]


def one_by_one(client: Client, count: int) -> None:
    for _ in range(count):
        client.execute("query-status")


def many_at_once(client: Client, count: int, window: int) -> None:
    for _ in range(window):
        client.send("query-status")
    for _ in range(count - window):
        client.reply()
        client.send("query-status")
    for _ in range(window):
        client.reply()


def measure(sock: socket.socket, load: dict[str, Any]) -> dict[str, float]:
    count, window = load["commands"], load["window"]
    client = Client(sock)
    one_by_one(client, 100)
    cpu, started = time.process_time(), time.perf_counter()
    one_by_one(client, count)
    ended, burnt = time.perf_counter(), time.process_time() - cpu
    many_at_once(client, 100, window)
    sent = count // window * window
    piped = time.perf_counter()
    many_at_once(client, sent, window)
    done = time.perf_counter()
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
        print(json.dumps(measure(ours, load)))
    finally:
        qemu.kill()
        qemu.wait()


main()
