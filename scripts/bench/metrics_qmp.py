"""QMP: one command after the other, many under way at once, and what the client burns.

Each run starts a fresh QEMU and a fresh client process.  Figures are seconds for
one `query-status`.
"""

from __future__ import annotations

import json

from bench_sides import Result, compare, interleave, say, script

ARGV = [
    "qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults",
    "-chardev", "socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control",
]  # fmt: skip
"""`{fd}` is replaced by the number of the socket that the side hands to QEMU."""

COMMANDS = 1500  # for each of the two figures
WINDOW = 32  # commands under way at once


def measure(runs: int) -> list[Result]:
    load = json.dumps({"argv": ARGV, "commands": COMMANDS, "window": WINDOW})
    say(f"load: {load}")
    figures = interleave(
        {
            "qmpkit": script("ours/qmp_session.py", load),
            "socket": script("peers/qmp_socket.py", load),
            "qmpclient": script("peers/qmp_qmpclient.py", load),
        },
        runs,
    )
    return [
        result
        for figure in ("round_trip", "pipelined", "cpu")
        for result in compare(f"qmp.{figure}", figure, figures, ours="qmpkit")
    ]
