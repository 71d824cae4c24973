"""The floor of the clone metrics: Popen, the fewest QMP commands, blocking sockets.

What is measured is the second argument: "script" (clones), "greeting" alone, or "cold_boot".
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROMPT = b"tiny# "


class Machine:
    """A QEMU that has greeted."""

    def __init__(self, load: dict[str, Any], command: str = "argv") -> None:
        self.folder = Path(tempfile.mkdtemp())
        overlay = self.folder / "disk.qcow2"
        shutil.copyfile(load["empty"], overlay)
        pairs = [socket.socketpair() for _ in range(load["sockets"])]
        theirs = [its.fileno() for _, its in pairs]
        argv = [word.replace("@overlay@", str(overlay)) for word in load[command]]
        for at, fd in enumerate(theirs):
            argv = [word.replace(f"@{at}@", str(fd)) for word in argv]
        self.qemu = subprocess.Popen(argv, pass_fds=theirs, stderr=subprocess.DEVNULL)
        for _, its in pairs:
            its.close()
        self.sockets = [ours for ours, _ in pairs]
        self.monitor, self.serial = self.sockets[0], self.sockets[load["serial"]]
        self.lines = self.monitor.makefile("rb")
        json.loads(self.lines.readline())
        self.state = f"{load['template']}/state"

    def execute(self, command: str, *, fds: tuple[int, ...] = (), **arguments: object) -> None:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        socket.send_fds(self.monitor, [line], fds)
        while "return" not in json.loads(self.lines.readline()):
            pass  # an event

    def load(self) -> None:
        self.execute("qmp_capabilities")
        wanted = [{"capability": it, "state": True} for it in ("x-ignore-shared", "events")]
        self.execute("migrate-set-capabilities", capabilities=wanted)
        state = os.open(self.state, os.O_RDONLY)
        self.execute("getfd", fdname="s", fds=(state,))
        os.close(state)
        line = json.dumps({"execute": "migrate-incoming", "arguments": {"uri": "fd:s"}}).encode()
        self.monitor.sendall(line + b"\n")
        while True:
            told = json.loads(self.lines.readline())
            if told.get("event") == "MIGRATION" and told["data"]["status"] == "completed":
                return

    def go(self) -> None:
        self.execute("cont")

    def answered(self) -> None:
        self.serial.sendall(b"echo $((6 * 7))-it-is\n")
        self.expect(b"42-it-is")

    def expect(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen += self.serial.recv(4096)

    def end(self) -> None:
        self.execute("quit")
        self.qemu.wait()
        self.lines.close()
        for ours in self.sockets:
            ours.close()
        shutil.rmtree(self.folder)


def clone_once(load: dict[str, Any]) -> tuple[float, float]:
    begun = time.perf_counter()
    machine = Machine(load)
    machine.load()
    machine.go()
    running = time.perf_counter() - begun
    machine.answered()
    answer = time.perf_counter() - begun
    machine.end()
    return running, answer


def many(load: dict[str, Any], count: int) -> float:
    machines: list[Machine] = []

    def run() -> None:
        machine = Machine(load)
        machine.load()
        machine.go()
        machines.append(machine)

    begun = time.perf_counter()
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    for machine in machines:
        machine.end()
    return took


def take_once(load: dict[str, Any], *, loaded: bool) -> float:
    machine = Machine(load)
    if loaded:
        machine.load()
    time.sleep(load["rest"])  # warm: it has come to rest
    begun = time.perf_counter()
    if not loaded:
        machine.load()
    machine.go()
    machine.answered()
    took = time.perf_counter() - begun
    machine.end()
    return took


def greeted(load: dict[str, Any]) -> float:
    begun = time.perf_counter()
    machine = Machine(load)
    took = time.perf_counter() - begun
    machine.execute("qmp_capabilities")
    machine.end()
    return took


def booted(load: dict[str, Any]) -> float:
    begun = time.perf_counter()
    machine = Machine(load, "cold")
    machine.execute("qmp_capabilities")
    machine.go()
    machine.expect(PROMPT)
    machine.answered()
    took = time.perf_counter() - begun
    machine.end()
    return took


def measure(load: dict[str, Any], what: str) -> dict[str, float]:
    turns = range(load["clones"])
    if what == "greeting":
        return {"running": statistics.median(greeted(load) for _ in turns)}
    if what == "cold_boot":
        return {"first_answer": booted(load)}
    clone_once(load)
    clones = [clone_once(load) for _ in turns]
    return {
        "running": statistics.median(running for running, _ in clones),
        "first_answer": statistics.median(answer for _, answer in clones),
        **({"many": many(load, load["many"])} if load["many"] else {}),
        "take": statistics.median(take_once(load, loaded=False) for _ in turns),
        "take_loaded": statistics.median(take_once(load, loaded=True) for _ in turns),
    }


print(json.dumps(measure(json.loads(sys.argv[1]), sys.argv[2])))
