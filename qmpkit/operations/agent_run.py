"""Programs run in the guest through its agent."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import trio

from qmpkit.operations.agent_link import AgentLink
from qmpkit.operations.completed import Completed

__all__ = ["INPUT_LIMIT", "OnCancel", "run"]

OnCancel = Literal["kill", "leave"]

# guest-exec has no event for a program's end, so its status must be asked for.  From 2 ms
# for the many programs that end at once, to 100 ms, which a long one will not notice.
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1
_PAUSE_GROWTH = 1.5

# QEMU's JSON parser takes 64 MiB in one string, and base64 makes four bytes of three.
INPUT_LIMIT = 47 * 1024 * 1024

# What a pipe holds: less input than that never waits for its reader.
_PIPE = 64 * 1024


async def run(
    link: AgentLink,
    argv: Sequence[str],
    stdin: bytes,
    env: Mapping[str, str] | None,
    on_cancel: OnCancel,
) -> Completed:
    """Run *argv* and wait for its end; see `Agent.run`."""
    argv = _checked(argv)
    if len(stdin) > INPUT_LIMIT:
        raise ValueError(f"input of {len(stdin)} bytes: at most {INPUT_LIMIT}; use write_file")
    asked = f"to run {argv[0]!r}"
    pids: list[int] = []

    def started(reply: Any) -> None:
        with link.understood("guest-exec"):
            pids.append(int(reply["pid"]))

    async def end(reply: Any) -> None:
        if on_cancel == "kill":
            with link.understood("guest-exec"):
                pid = int(reply["pid"])
            await _kill(link, pid, has_input=len(stdin) > _PIPE)

    try:
        await link.ask("guest-exec", _request(argv, stdin, env), started, end, asked=asked)
        reply = await _ended(link, pids[0], asked)
    except trio.Cancelled:
        if pids:
            await link.tidy(lambda: end({"pid": pids[0]}))
        raise
    with link.understood("guest-exec-status"):
        return _completed(argv, reply)


def _checked(argv: Sequence[str]) -> tuple[str, ...]:
    if isinstance(argv, str) or not argv:
        raise TypeError(f"argv is a list of the program and its arguments, not {argv!r}")
    return tuple(argv)


def _request(argv: tuple[str, ...], stdin: bytes, env: Mapping[str, str] | None) -> dict[str, Any]:
    request: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if stdin:
        request["input-data"] = base64.b64encode(stdin).decode()
    if env is not None:
        request["env"] = [f"{key}={value}" for key, value in env.items()]
    return request


async def _ended(link: AgentLink, pid: int, asked: str) -> dict[str, Any]:
    pause = _FIRST_PAUSE
    while True:
        reply = await link.execute("guest-exec-status", {"pid": pid}, asked=asked)
        with link.understood("guest-exec-status"):
            if reply["exited"]:
                return dict(reply)
        await trio.sleep(pause)
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)


async def _kill(link: AgentLink, pid: int, *, has_input: bool) -> None:
    """End the program; asking for its status also frees what the agent keeps of it."""
    asked = f"to kill process {pid}"
    if has_input:
        # First somebody must read what is left of it.  With a full pipe that has lost its
        # reader the agent (7.2) takes all of a CPU for ever; and it crashes when the pipe
        # is read on after it has told that the program has ended.
        await _helped(link, ["cat", f"/proc/{pid}/fd/0"], asked)
    status = await link.execute("guest-exec-status", {"pid": pid}, asked=asked)
    with link.understood("guest-exec-status"):
        if status["exited"]:
            return  # its number may already be another's
    await _helped(link, ["kill", "-KILL", str(pid)], asked)
    await _ended(link, pid, asked)


async def _helped(link: AgentLink, argv: list[str], asked: str) -> None:
    request = {"path": argv[0], "arg": argv[1:]}
    helper = await link.execute("guest-exec", request, asked=asked)
    with link.understood("guest-exec"):
        pid = int(helper["pid"])
    await _ended(link, pid, asked)


def _completed(argv: tuple[str, ...], reply: Mapping[str, Any]) -> Completed:
    signal = reply.get("signal")
    return Completed(
        argv=argv,
        status=None if signal is not None else int(reply["exitcode"]),
        signal=signal,
        stdout=base64.b64decode(reply.get("out-data", "")),
        stderr=base64.b64decode(reply.get("err-data", "")),
        truncated=bool(reply.get("out-truncated") or reply.get("err-truncated")),
    )
