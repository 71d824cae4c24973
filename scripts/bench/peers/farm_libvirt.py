"""The peer of the farm metrics: libvirtd, asked through its own Python binding.

The daemon has its own configuration, directories and socket: it runs in a mount namespace
where libvirt's directories are empty.  Its user is root there, as ours is.  We reap what it
leaves: a libvirtd whose QEMUs become zombies waits for two seconds to see each of them end.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

PR_SET_CHILD_SUBREAPER = 36
READY_WITHIN = 60.0
LISTS = 15

EMPTY = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/run/libvirt")
"""Libvirt's directories, which are others in the daemon's namespace."""

QEMU_CONF = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\n'

XML = """<domain type='qemu'>
<name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='microvm'>hvm</type></os>
<devices><emulator>{qemu}</emulator><controller type='usb' model='none'/>
<memballoon model='none'/><serial type='pty'/></devices>
</domain>"""


def write_settings(root: Path) -> Path:
    """The files of a daemon below *root*, and the script that starts it there."""
    conf, script = root / "libvirtd.conf", root / "start"
    conf.write_text(
        f'unix_sock_dir = "{root}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        f'log_outputs = "3:file:{root}/libvirtd.log"\n'
    )
    (root / "qemu.conf").write_text(QEMU_CONF)
    # It looks its default users up before it reads that they are others.
    passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    (root / "passwd").write_text(f"{passwd}libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n")
    (root / "group").write_text(f"{group}libvirt-qemu:x:64055:\n")
    lines = ["set -e", *(f"mkdir -p {folder}" for folder in (*EMPTY, "/var/cache/libvirt"))]
    lines += [f"mount -t tmpfs tmpfs {folder}" for folder in EMPTY]
    mounts = {"cache": "/var/cache/libvirt", "passwd": "/etc/passwd", "group": "/etc/group"}
    lines += [f"mount --bind {shlex.quote(f'{root}/{a}')} {b}" for a, b in mounts.items()]
    lines += [f"cp {root}/qemu.conf /etc/libvirt/", f"exec libvirtd --config {conf}"]
    (root / "cache").mkdir(exist_ok=True)
    script.write_text("\n".join(lines))
    return script


class Libvirtd:
    """A daemon of this run."""

    def __init__(self, root: Path) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._socket = root / "libvirt-sock"
        self._socket.unlink(missing_ok=True)
        with (root / "output").open("wb") as output:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", str(write_settings(root))],
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid  # `unshare` and the shell have become it
        self._reaper = threading.Thread(target=self._reap)
        self._reaper.start()

    def _reap(self) -> None:
        while True:
            try:
                os.wait()
            except ChildProcessError:  # also the daemon, as the last
                return

    def connect(self) -> libvirt.virConnect:
        until = time.monotonic() + READY_WITHIN
        while not self._socket.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return libvirt.open(f"qemu:///system?socket={self._socket}")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        self._reaper.join()


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def list_of(connection: libvirt.virConnect) -> list[tuple[str, int]]:
    """What `virsh list` asks for."""
    return [(domain.name(), domain.state()[0]) for domain in connection.listAllDomains()]


def measure(daemon: Libvirtd, load: dict[str, Any]) -> dict[str, float]:
    connection = daemon.connect()
    names = [f"bench{number}" for number in range(load["machines"])]
    texts = [XML.format(name=name, qemu=load["argv"][0]) for name in names]
    domains = [connection.defineXML(text) for text in texts]
    try:
        paused = libvirt.VIR_DOMAIN_START_PAUSED
        start = [timed(lambda: it.createWithFlags(paused)) for it in domains]  # noqa: B023
        assert dict(list_of(connection)) == dict.fromkeys(names, libvirt.VIR_DOMAIN_PAUSED)
        lists = [timed(lambda: list_of(connection)) for _ in range(LISTS)]
        stats = timed(connection.getAllDomainStats)
        pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        stop = [timed(it.destroy) for it in domains]
    finally:
        for domain in domains:
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    rss = pages * os.sysconf("SC_PAGE_SIZE")
    figures: dict[str, list[float]] = {
        "start": start,
        "list": lists,
        "stats": [stats],
        "stop": stop,
    }
    figures["daemon_rss"] = [rss]
    return {name: statistics.median(values) for name, values in figures.items()}


def main() -> None:
    load = json.loads(sys.argv[1])
    daemon = Libvirtd(Path(load["libvirt"]))
    try:
        figures = measure(daemon, load)
    finally:
        daemon.end()
    print(json.dumps(figures))


main()
