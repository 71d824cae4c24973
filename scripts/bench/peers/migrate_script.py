"""The floor of the group `migrate`: the same QMP commands by a script, and no more."""

from __future__ import annotations

import array
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack
from typing import Any

COMMON = {"events", "return-path"}
ON = COMMON | {"auto-converge", "late-block-activate"}


class Guest:
    """A QEMU and its monitor; the serial console goes to a socket."""

    def __init__(self, load: dict[str, Any], *, incoming: bool) -> None:
        argv, pairs = load["destination" if incoming else "source"], {}
        for name in load["channels"]:
            pairs[name] = socket.socketpair()
            argv = [word.replace(f"@{name}@", str(pairs[name][1].fileno())) for word in argv]
        fds = [theirs.fileno() for _, theirs in pairs.values()]
        self.process = subprocess.Popen(argv, pass_fds=fds)
        for _, theirs in pairs.values():
            theirs.close()
        self._sock, self.console = pairs["qmp"][0], pairs["serial0"][0]
        self._lines = self._sock.makefile("rb")
        self._events: deque[tuple[dict[str, Any], float]] = deque()
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, fd: int | None = None, /, **arguments: Any) -> Any:
        message = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        if fd is None:
            self._sock.sendall(message)
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            self._sock.sendmsg([message], [rights])
        while True:
            reply = json.loads(self._lines.readline())
            if "event" not in reply:
                return reply["return"]
            self._events.append((reply, time.monotonic()))

    def event(self, name: str, status: str = "") -> float:
        """Wait for it, and for this status in it; when it was read."""
        while True:
            while self._events:
                event, at = self._events.popleft()
                if event["event"] == name and status in ("", event.get("data", {}).get("status")):
                    return at
            self._events.append((json.loads(self._lines.readline()), time.monotonic()))

    def set(self) -> None:
        known = [line["capability"] for line in self.execute("query-migrate-capabilities")]
        capabilities = [{"capability": name, "state": name in ON} for name in known]
        self.execute("migrate-set-capabilities", capabilities=capabilities)
        parameters: dict[str, object] = {"max-bandwidth": 1 << 40, "downtime-limit": 300}
        parameters |= {"multifd-channels": 1}
        parameters |= {"multifd-compression": "none", "tls-creds": "", "tls-hostname": ""}
        parameters |= {"cpu-throttle-initial": 50, "cpu-throttle-increment": 20}
        self.execute("migrate-set-parameters", **parameters)

    def beats(self) -> None:
        """Wait until the guest has printed a dot."""
        while b"." not in self.console.recv(4096):
            pass

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for part in (self._lines, self._sock, self.console):
            part.close()


def move(source: Guest, destination: Guest) -> tuple[float, float]:
    started = time.perf_counter()
    ours, theirs = socket.socketpair()
    source.set()
    destination.set()
    with ours, theirs:
        source.execute("getfd", ours.fileno(), fdname="m")
        destination.execute("getfd", theirs.fileno(), fdname="m")
    destination.execute("migrate-incoming", uri="fd:m")
    source.execute("migrate", uri="fd:m")
    stopped = source.event("STOP")
    destination.event("MIGRATION", "completed")
    source.event("MIGRATION", "completed")
    destination.execute("cont")
    resumed = destination.event("RESUME")
    source.execute("quit")
    source.process.wait()
    return time.perf_counter() - started, resumed - stopped


def main() -> None:
    load = json.loads(sys.argv[1])
    total, downtime = [], []
    with ExitStack() as stack:
        guest = Guest(load, incoming=False)
        stack.callback(guest.end)
        guest.execute("cont")
        guest.beats()
        for _ in range(load["moves"]):
            other = Guest(load, incoming=True)
            stack.callback(other.end)
            took = move(guest, other)
            total.append(took[0])
            downtime.append(took[1])
            guest = other
            guest.beats()
    print(json.dumps({"total": statistics.median(total), "downtime": statistics.median(downtime)}))


main()
