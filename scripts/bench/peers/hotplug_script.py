"""The floor of the hotplug metrics: QMP by hand, and no more of it than is needed."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import plugged_guest as guest


class Guest:
    def __init__(self, monitor: socket.socket, console: socket.socket) -> None:
        self._monitor = monitor
        self._replies: BinaryIO = monitor.makefile("rb")
        self._console = console
        self._heard = b""
        self._replies.readline()
        self.execute("qmp_capabilities")
        self.execute("cont")
        self.hear(guest.PROMPT)
        self.tell(guest.SET_UP, guest.READY)

    def execute(self, command: str, **arguments: Any) -> None:
        message = {"execute": command, "arguments": arguments}
        self._monitor.sendall(json.dumps(message).encode() + b"\n")
        while "event" in (reply := json.loads(self._replies.readline())):
            pass
        if "error" in reply:
            raise SystemExit(f"{command}: {reply['error']['desc']}")

    def unplug(self, device: str) -> None:
        """`device_del`, and its event; the device's own, not that of its inner half."""
        message = {"execute": "device_del", "arguments": {"id": device}}
        self._monitor.sendall(json.dumps(message).encode() + b"\n")
        while True:
            told = json.loads(self._replies.readline())
            if told.get("event") == "DEVICE_DELETED" and told["data"].get("device") == device:
                return

    def hear(self, text: str) -> None:
        wanted = text.encode()
        while wanted not in self._heard:
            self._heard += self._console.recv(65536)
        self._heard = self._heard.partition(wanted)[2]

    def tell(self, line: str, answer: str) -> None:
        self._console.sendall(line.encode() + b"\n")
        self.hear(answer)


def plug_disk(it: Guest, image: str) -> None:
    it.execute("blockdev-add", driver="file", filename=image, **{"node-name": "file"})
    it.execute("blockdev-add", driver="raw", file="file", **{"node-name": "disk"})
    it.execute("device_add", driver="virtio-blk-pci", id="d", drive="disk", bus="spare-port0")


def unplug_disk(it: Guest) -> None:
    it.unplug("d")
    it.execute("blockdev-del", **{"node-name": "disk"})
    it.execute("blockdev-del", **{"node-name": "file"})


def plug_nic(it: Guest) -> None:
    it.execute("netdev_add", type="user", id="net")
    it.execute("device_add", driver="virtio-net-pci", id="n", netdev="net", bus="spare-port0")


def unplug_nic(it: Guest) -> None:
    it.unplug("n")
    it.execute("netdev_del", id="net")


def seconds(step: Callable[[], None]) -> float:
    begun = time.monotonic()
    step()
    return time.monotonic() - begun


def seen_disk(it: Guest, image: str) -> tuple[float, float]:
    """Seconds from the first command to the guest's line, and of the unplug."""
    begun = time.monotonic()
    plug_disk(it, image)
    it.hear(guest.DISK_SEEN)
    seen = time.monotonic() - begun
    took = seconds(lambda: unplug_disk(it))
    it.tell(guest.gone("/sys/block/vda"), guest.GONE)
    return seen, took


def few(it: Guest, load: dict[str, Any]) -> dict[str, float]:
    seen, gone = zip(*(seen_disk(it, load["image"]) for _ in range(load["plugs"])), strict=True)
    return {"disk_seen": statistics.median(seen), "disk_gone": statistics.median(gone)}


def many(it: Guest, load: dict[str, Any]) -> dict[str, float]:
    disks, nics = [], []
    for _ in range(load["plugs"]):
        took = seconds(lambda: plug_disk(it, load["image"]))
        it.hear(guest.DISK_SEEN)
        disks.append(took + seconds(lambda: unplug_disk(it)))
        it.tell(guest.gone("/sys/block/vda"), guest.GONE)
        took = seconds(lambda: plug_nic(it))
        it.tell(guest.there("/sys/class/net/eth0"), guest.STARTED)
        nics.append(took + seconds(lambda: unplug_nic(it)))
        it.tell(guest.gone("/sys/class/net/eth0"), guest.GONE)
    return {
        "disk": statistics.median(disks),
        "nic": statistics.median(nics),
        "disk_slowing": guest.slowing(disks),
        "nic_slowing": guest.slowing(nics),
    }


def main() -> None:
    load = json.loads(sys.argv[1])
    pairs = {name: socket.socketpair() for name in load["channels"]}
    theirs = {name: its.fileno() for name, (_, its) in pairs.items()}
    argv = [word.format(**theirs) if word.startswith("socket,") else word for word in load["argv"]]
    qemu = subprocess.Popen(argv, pass_fds=list(theirs.values()))
    try:
        for _, its in pairs.values():
            its.close()
        it = Guest(pairs["qmp"][0], pairs["serial0"][0])
        print(json.dumps(many(it, load) if load["many"] else few(it, load)))
    finally:
        qemu.kill()
        qemu.wait()


main()
