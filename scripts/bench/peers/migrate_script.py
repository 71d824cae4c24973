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

COMMON = {"events", "pause-before-switchover", "return-path"}
ON = COMMON | {"auto-converge", "late-block-activate"}


class Guest:
    """A QEMU and its monitor; the serial console goes to a socket."""

    def __init__(self, load: dict[str, Any], *, incoming: bool) -> None:
        self._sock, qmp = socket.socketpair()
        self.console, serial = socket.socketpair()
        fds = [qmp.fileno(), serial.fileno()]
        self.process = subprocess.Popen(argv(load, fds, incoming=incoming), pass_fds=fds)
        qmp.close()
        serial.close()
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


def argv(load: dict[str, Any], fds: list[int], *, incoming: bool) -> list[str]:
    memory = f"{load['memory']}K"
    deny = [
        f"{what}=deny" for what in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    ]
    words = ["qemu-system-x86_64", "-machine", "q35,memory-backend=ram0", "-accel", "tcg", "-S"]
    words += ["-sandbox", ",".join(["on", *deny]), "-name", "mover,debug-threads=on"]
    words += ["-cpu", "qemu64", "-m", memory, "-nodefaults", "-display", "none"]
    words += ["-object", f"memory-backend-ram,id=ram0,size={memory}", "-bios", load["firmware"]]
    words += ["-chardev", f"socket,id=qmp,fd={fds[0]}", "-mon", "chardev=qmp,mode=control"]
    words += ["-chardev", f"socket,id=serial,fd={fds[1]}", "-serial", "chardev:serial"]
    for disk, image in enumerate(load["images"]):
        file = {"driver": "file", "filename": image}
        node = {"driver": "qcow2", "node-name": f"n{disk}", "file": file}
        words += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=n{disk}"]
    return words + (["-incoming", "defer"] if incoming else [])


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
    source.event("MIGRATION", "pre-switchover")
    source.execute("migrate-continue", state="pre-switchover")
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
