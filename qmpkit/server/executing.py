"""Programs that are run in a guest for a client: checked, bounded, and killed when it goes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import attrs
import trio
from starlette.requests import Request

from qmpkit.operations.completed import Completed
from qmpkit.server.answers import Refused
from qmpkit.server.bodies import Keys, read_object
from qmpkit.server.presence import while_there
from qmpkit.spec.options import text_problem
from qmpkit.vm import VM

__all__ = ["executed"]

_LIMIT = 3600.0
_KEYS: Keys = {"argv": list, "stdin_base64": str, "env": dict, "timeout": (int, float)}


@attrs.frozen
class _Asked:
    argv: list[str]
    stdin: bytes
    env: dict[str, str] | None
    limit: float


async def executed(vm: VM, request: Request) -> dict[str, Any]:
    """How the program ended that *request* asks for."""
    asked = _checked(await read_object(request, _KEYS))

    async def run() -> Completed:
        return await vm.agent.run(asked.argv, input=asked.stdin, env=asked.env)

    try:
        with trio.fail_after(asked.limit):
            done = await while_there(request.receive, run)
    except trio.TooSlowError:
        raise Refused(f"{asked.argv[0]} did not end within {asked.limit:g} s", 504) from None
    return {
        "exit": done.status,
        "signal": done.signal,
        "stdout_base64": base64.b64encode(done.stdout).decode(),
        "stderr_base64": base64.b64encode(done.stderr).decode(),
        "truncated": done.truncated,
    }


def _checked(wanted: Mapping[str, Any]) -> _Asked:
    argv, env = wanted.get("argv") or [], wanted.get("env")
    if not argv or not all(isinstance(word, str) for word in argv):
        raise Refused("argv must be a list of texts, the first of them the program")
    stdin = _decoded(wanted.get("stdin_base64", ""))
    if not all(isinstance(value, str) for value in (env or {}).values()):
        raise Refused("env must be an object of texts")
    for word in (*argv, *(env or {}).keys(), *(env or {}).values()):
        if problem := text_problem(word):
            raise Refused(f"{word!r}: {problem}")
    limit = wanted.get("timeout", _LIMIT)
    if not 0 < limit <= _LIMIT:  # NaN is not either
        raise Refused(f"timeout must be seconds, more than 0 and at most {_LIMIT:g}")
    return _Asked(argv, stdin, env, limit)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(f"stdin_base64 is no base64: {error}") from error
