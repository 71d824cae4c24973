"""The floor of the image metrics: qemu-img itself, as a script would run it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time


def timed(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(["qemu-img", *words], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started


def words(kind: str, folder: str, number: int) -> list[str]:
    create = ["create", "-q", "-f", "qcow2"]
    if kind == "info":
        return ["info", "--output=json", "-f", "qcow2", f"{folder}/base"]
    if kind == "create":
        return [*create, f"{folder}/new{number}", "10G"]
    return [*create, "-F", "qcow2", "-b", f"{folder}/base", f"{folder}/top{number}"]


def main() -> None:
    calls = json.loads(sys.argv[1])["calls"]
    with tempfile.TemporaryDirectory() as folder:
        timed(["create", "-q", "-f", "qcow2", f"{folder}/base", "10G"])
        figures = {"first": timed(words("info", folder, 0))}
        for kind in ("info", "create", "overlay"):
            took = [timed(words(kind, folder, number)) for number in range(1, calls + 1)]
            figures[kind] = statistics.median(took)
    print(json.dumps(figures))


main()
