"""A farm: our daemon against libvirtd, and the start of many machines against a bare script.

The machines are paused microvms of 64 MiB without a guest.  `farm.start`, `farm.stop`: one
machine, the others up; `farm.list`, `farm.stats`: all of them; in seconds.
`farm.daemon_rss`: bytes of the daemon, ours with its spawner, while all are up.
`farm.start_many`, and `farm.start_many_kvm` where there is KVM: seconds a machine when many are
asked for at once, until each QEMU takes commands; ours are kept, on record and in their
supervisor's hands by then.  The bare script starts as many at a time as our supervisor does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_sides import HERE, Result, compare, interleave, say, script

from qmpkit.testing.leaks import living_with

SIZE = 200  # machines of `farm.start_many`
AT_ONCE = 2 * (os.cpu_count() or 1) + 4  # as a Supervisor, when it is not told otherwise
ASKED = 8  # machines of the other metrics
FIGURES = {"start": "s", "list": "s", "stats": "s", "stop": "s", "daemon_rss": "B"}
GOALS = {"farm.start": 5, "farm.stop": 10}  # times faster than libvirt

_TMPFS = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112

SYSTEM_PYTHON = "/usr/bin/python3"  # for which Debian has libvirt's binding
PACKAGES = "libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt"


def measure(runs: int, size: int = SIZE) -> list[Result]:
    with _places() as root:
        (root / "state").mkdir()
        load = {**_command("tcg"), "machines": ASKED, "libvirt": str(root)}
        found = [*_against_libvirt(runs, load)]
        for accel in ("tcg", "kvm") if os.access("/dev/kvm", os.R_OK | os.W_OK) else ("tcg",):
            many = {**_command(accel), "accel": accel, "machines": size, "at_once": AT_ONCE}
            found += _against_bare(runs, many)
        return found


def _command(accel: str) -> dict[str, Any]:
    """The command of one machine, and how many sockets it is given."""
    side = script("ours/farm_argv.py", accel)
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    printed = subprocess.run(side, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout
    command: dict[str, Any] = json.loads(printed)
    return command


def _against_libvirt(runs: int, load: dict[str, Any]) -> Iterator[Result]:
    if missing := _missing():
        say(f"no peer libvirt: {missing}")
        return
    told = subprocess.run(["libvirtd", "--version"], capture_output=True, text=True, check=True)
    say(f"load: {json.dumps(load)}\npeer: {told.stdout.strip()}")
    peer = script("peers/farm_libvirt.py", json.dumps(load))
    sides = {
        "qmpkit": script("ours/farm_daemon.py", json.dumps(load)),
        "libvirt": [SYSTEM_PYTHON, *peer[1:]],
    }
    figures = interleave(sides, runs)
    for figure, unit in FIGURES.items():
        for result in compare(f"farm.{figure}", figure, figures, ours="qmpkit", unit=unit):
            if goal := GOALS.get(result.metric):
                say(f"{result.metric}: {1 / result.ratio:.1f} times faster, goal {goal}")
            yield result


def _missing() -> str:
    """Why libvirt cannot be measured here, with its cure; empty when it can."""
    if os.geteuid() != 0:
        return "its system daemon is root's. Cure: run this as root"
    binding = subprocess.run([SYSTEM_PYTHON, "-c", "import libvirt"], capture_output=True)
    driver = next(Path("/usr/lib").glob("*/libvirt/connection-driver/*_qemu.so"), None)
    if binding.returncode or driver is None or shutil.which("libvirtd") is None:
        return f"it is not installed. Cure: apt-get install --no-install-recommends {PACKAGES}"
    return ""


def _against_bare(runs: int, load: dict[str, Any]) -> Iterator[Result]:
    text = json.dumps(load)
    say(f"load: {text}")
    figures = interleave(
        {
            "qmpkit": script("ours/farm_many.py", text),
            "bare": script("peers/farm_bare.py", text),
        },
        runs,
    )
    metric = "farm.start_many" if load["accel"] == "tcg" else f"farm.start_many_{load['accel']}"
    for result in compare(metric, "start_many", figures, ours="qmpkit"):
        say(f"{result.metric}: {1 / result.ratio:.2f} of the rate of bare, goal 0.9")
        yield result


@contextlib.contextmanager
def _places() -> Iterator[Path]:
    """A directory of our own for both sides; what a failed run leaves in it is ended."""
    # Short, as the paths of sockets are to be.
    with (
        tempfile.TemporaryDirectory(prefix="qb-", ignore_cleanup_errors=True) as name,
        # Sockets are in a tmpfs, as under /run of a host.
        tempfile.TemporaryDirectory(prefix="qb-", dir=_TMPFS, ignore_cleanup_errors=True) as mark,
    ):
        root = Path(name)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # by way of finally
        os.environ |= {"QMPKIT_STATE_DIR": f"{root}/state", "QMPKIT_RUNTIME_DIR": mark}
        try:
            yield root
        finally:
            for pid in living_with(f"QMPKIT_RUNTIME_DIR={mark}"):
                if pid != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
