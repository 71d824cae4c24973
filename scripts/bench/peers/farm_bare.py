"""The floor of `farm.start_many`: the same QEMUs by Popen, as many at a time.

Each counts as started once it takes commands: it greets before its machine is made.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from farm_memory import memory_at_hand


def start(load: dict[str, Any], folder: Path, log_file: Path) -> subprocess.Popen[bytes]:
    """Start one; it takes commands when this returns."""
    folder.mkdir()
    listeners = []
    for number in range(load["sockets"]):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / str(number)))
        listener.listen(1)
        listeners.append(listener)
    fds = [listener.fileno() for listener in listeners]
    argv = [word.format(*fds) if word.startswith("socket,") else word for word in load["argv"]]
    with log_file.open("wb") as log:
        qemu = subprocess.Popen(argv, pass_fds=fds, stdout=log, stderr=log, start_new_session=True)
    for listener in listeners:
        listener.close()
    monitor = socket.socket(socket.AF_UNIX)
    monitor.connect(str(folder / "0"))
    with monitor, monitor.makefile("rb") as lines:
        assert "QMP" in json.loads(lines.readline())
        monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
        assert "return" in json.loads(lines.readline())
    return qemu


def main() -> None:
    load = json.loads(sys.argv[1])
    qemus: list[subprocess.Popen[bytes]] = []
    runtime = os.environ["QMPKIT_RUNTIME_DIR"]  # where the other side has its sockets too
    logs = tempfile.mkdtemp(dir=os.environ["QMPKIT_STATE_DIR"])  # left: see farm_memory
    with (
        memory_at_hand(load["machines"]),
        tempfile.TemporaryDirectory(prefix="b-", dir=runtime) as root,
    ):
        try:
            begun = time.perf_counter()
            with ThreadPoolExecutor(load["at_once"]) as pool:
                names = map(str, range(load["machines"]))
                places = ((Path(root) / name, Path(logs) / name) for name in names)
                qemus += pool.map(lambda place: start(load, *place), places)
            took = time.perf_counter() - begun
        finally:
            for qemu in qemus:
                qemu.kill()
            for qemu in qemus:
                qemu.wait()
    print(json.dumps({"start_many": took / load["machines"]}))


main()
