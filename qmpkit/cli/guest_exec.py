"""`qmpkit exec`: a program in a guest, by the daemon, or by the guest's agent when none runs."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence

import attrs

from qmpkit.cli.daemon import Daemon, NoDaemon, find_daemon
from qmpkit.cli.exits import Refusal
from qmpkit.cli.farm_actions import one_machine
from qmpkit.cli.guest_words import refuse_no_texts
from qmpkit.cli.talk import talk
from qmpkit.cli.which_farm import which_farm

__all__ = ["STDIN_LIMIT", "execute"]

STDIN_LIMIT = 512 << 10
"""Bytes: the agent's protocol has the whole of a program's stdin in one message."""


@attrs.frozen
class _Done:
    """How the program ended: by a signal when `status` is None."""

    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


def execute(name: str, argv: Sequence[str], farm: str | None) -> int:
    """`exec`: its output and exit status become ours."""
    refuse_no_texts(argv)
    which = which_farm(farm)
    try:
        daemon = find_daemon(which)
        machine = one_machine(daemon, name)
    except NoDaemon:
        done = _directly(which, name, argv)
    else:
        done = _by(daemon, machine, argv)
    return _shown(done)


def _by(daemon: Daemon, machine: str, argv: Sequence[str]) -> _Done:
    stdin = _stdin(machine, argv)
    body = {"argv": list(argv), "stdin_base64": base64.b64encode(stdin).decode()}
    said = daemon.post("machines", machine, "exec", body=body, timeout=None)
    out, err = (base64.b64decode(said[f"{name}_base64"]) for name in ("stdout", "stderr"))
    return _Done(said["exit"], said["signal"], out, err, said["truncated"])


def _directly(farm: str, name: str, argv: Sequence[str]) -> _Done:
    import trio

    from qmpkit.cli.direct import run_in
    from qmpkit.cli.interrupt import interruptible
    from qmpkit.cli.offline import living_machine

    seen = living_machine(farm, name)
    stdin = _stdin(seen.record.name, argv)

    async def run() -> _Done:
        async with interruptible() as work:
            done = await run_in(seen, argv, stdin)
            work.done = True
        return _Done(done.status, done.signal, done.stdout, done.stderr, done.truncated)

    return trio.run(run)


def _stdin(machine: str, argv: Sequence[str]) -> bytes:
    """What is piped in, or nothing at a terminal; never more of it than is needed is read."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    stdin = sys.stdin.buffer.read(STDIN_LIMIT + 1)
    if len(stdin) > STDIN_LIMIT:
        raise Refusal(
            f"stdin for {argv[0]!r} in machine {machine!r} has more than {STDIN_LIMIT >> 10} KiB, "
            "which the guest's agent wants in one message. Cure: copy it before: "
            f"`… | qmpkit cp - {machine}:/tmp/input`, then "
            f"`qmpkit exec {machine} -- sh -c '{argv[0]} … </tmp/input'`"
        )
    return stdin


def _shown(done: _Done) -> int:
    for stream, data in ((sys.stdout, done.stdout), (sys.stderr, done.stderr)):
        stream.buffer.write(data)
        stream.buffer.flush()
    if done.truncated:
        talk.warn("it wrote more than the guest's agent keeps: the output is not whole")
    return 128 + int(done.signal or 0) if done.status is None else done.status
