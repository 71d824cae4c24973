"""The API's part about moving machines to another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.migration.convergence import Policy, Round, adjusted, policy_of
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace, move_place
from qmpkit.operations.migration.postcopy import postcopy_faults
from qmpkit.operations.migration.storage import SHARED
from qmpkit.operations.migration.tls import tls_faults
from qmpkit.server.answers import NotUp, answer
from qmpkit.server.bodies import Keys, read_object
from qmpkit.server.jobs import Jobs, Step
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["MigrateApi"]

_NUMBER = (int, float)
_OPTIONS: Keys = {
    "way": str,
    "address": str,
    "file": str,
    "tls": str,
    "max_bandwidth": (int, str),
    "downtime": _NUMBER,
    "max_downtime": _NUMBER,
    "channels": int,
    "compression": str,
}
_WHERE: Keys = {"qemu": str, "disks": (str, dict), "collapse": bool}
_NUMBERS: Keys = {"deadline": _NUMBER, "passes": int}
_KEYS: Keys = {"policy": str, **_NUMBERS, "to": str, **_WHERE, **_OPTIONS}


class MigrateApi:
    """A move is a job, whose steps tell how far it is."""

    def __init__(self, lab: Supervisor, jobs: Jobs, find: Callable[[Request], Kept]) -> None:
        self._lab = lab
        self._jobs = jobs
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths."""
        one = "/v1/machines/{name}/migrate"
        return [
            Route(one, self.migrate, methods=["POST"]),
            Route(f"{one}/check", self.check, methods=["POST"]),
            Route(f"{one}/settle", self.settle, methods=["POST"]),
        ]

    async def check(self, request: Request) -> Response:
        """What is in its way; nothing is done."""
        kept = self._find(request)
        asked = await read_object(request, _KEYS)
        place, where = await _place(asked), _where(asked)
        policy, options = _how(asked, place)
        _refuse_down(kept)
        faults = [*await self._lab.migration_faults(kept.name, place, **where)]
        if policy_of(policy, options.downtime, options.max_downtime).postcopies:
            faults += postcopy_faults(options, ())
        if place is None:
            faults += await trio.to_thread.run_sync(tls_faults, options.tls)
        return answer({"machine": kept.name, "faults": [attrs.asdict(it) for it in faults]})

    async def settle(self, request: Request) -> Response:
        """Ask where a machine is whose move has come to an unknown end."""
        name = self._find(request).name
        asked = await read_object(request, {"to": str, "tls": str, "here": bool})
        to, here = await _place(asked), asked.get("here", False)

        async def work(_: Step) -> dict[str, Any]:
            found = await self._lab.settle(name, to=to, here=here)
            return {"machine": name, "is": found.value}

        return answer({"job": self._jobs.start(f"settle {name}", work).id}, 202)

    async def migrate(self, request: Request) -> Response:
        """To a new process, of another qemu or the same, or to another supervisor."""
        kept = self._find(request)
        name = kept.name
        asked = await read_object(request, _KEYS)
        to = await _place(asked)
        policy, options = _how(asked, to)
        where = _where(asked)
        _refuse_down(kept)

        async def work(step: Step) -> dict[str, Any]:
            took = await self._lab.migrate(
                name, to=to, policy=policy, options=options, progress=_telling(step), **where
            )
            found = {"to": str(to)} if to is not None else {"pid": self._lab.kept[name].pid}
            return {"machine": name, **found, **attrs.asdict(took)}

        job = self._jobs.start(f"migrate {name}", work)
        return answer({"job": job.id}, 202)


def _refuse_down(kept: Kept) -> None:
    if kept.vm is None:
        raise NotUp(kept.name, kept.state, kept.cause, rests=not kept.tended)


def _where(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Where it is to move; no path is taken from the daemon's own directory."""
    qemu, disks = asked.get("qemu"), asked.get("disks", SHARED)
    # A name of a qemu is looked up by PATH.
    paths = {"qemu": qemu if qemu is not None and "/" in qemu else None}
    if isinstance(disks, dict):
        paths |= {f"disks.{name}": file for name, file in disks.items()}
    elif disks != SHARED:
        paths["disks"] = disks
    faults = [
        Fault(where, f"{path!r} is no absolute path")
        for where, path in paths.items()
        if path is not None and not (isinstance(path, str) and path.startswith("/"))
    ]
    if faults:
        raise SpecInvalid(faults, "the request")
    return {"qemu": qemu, "disks": disks, "collapse": asked.get("collapse", False)}


def _how(asked: Mapping[str, Any], to: MovePlace | None) -> tuple[str | Policy, MigrationOptions]:
    """SpecInvalid for what cannot be."""
    how = {key: asked[key] for key in _OPTIONS if key in asked}
    if to is not None:
        how = {"way": "tcp" if to.host else "unix"} | how
    options = MigrationOptions(**how) if to is None else to.options(MigrationOptions(**how))
    numbers = {key: asked[key] for key in _NUMBERS if key in asked}
    policy = adjusted(asked.get("policy", "live"), **numbers)
    policy_of(policy, options.downtime, options.max_downtime)
    return policy, options


async def _place(asked: dict[str, Any]) -> MovePlace | None:
    """Another supervisor that is named; its folder of certificates is no option then."""
    if (to := asked.get("to")) is None:
        return None
    tls = asked.pop("tls", None)
    return await trio.to_thread.run_sync(move_place, to, None if tls is None else Path(tls))


def _telling(step: Step) -> Callable[[Round], None]:
    def told(now: Round) -> None:
        done = now.total - now.remaining
        rate = now.bandwidth or None
        left = 0.0 if now.left is None else now.left
        told = {"bytes": done, "of": now.total, "rate": rate, "left": left, "pass": now.number}
        disks = {it.disk: [it.done, it.total] for it in now.disks}
        step({**told, "phase": now.phase, "disks": disks})

    return told
