"""The API's part about the farm as a whole: plan, up, down, scale."""

from __future__ import annotations

from typing import Any

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.farm import Outcome, Progress, down, plan_up, read_farm, scale, up
from qmpkit.farm.leave import lost_by_down, of_farm
from qmpkit.farm.outcome import Tell
from qmpkit.server.answers import Refused, answer
from qmpkit.server.bodies import Keys, read_object
from qmpkit.server.jobs import Jobs, Step, Work
from qmpkit.spec import farm_plan
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_data import farm_from_dict, farm_to_dict
from qmpkit.spec.farm_plan import Plan
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["FarmApi", "plan_view"]

_NUMBER = (int, float)
_FARM_LIMIT = 16 << 20  # each table has its user-data in it, and 100 files may have tables


class FarmApi:
    """Long operations are jobs, one at a time: a second waits for the first."""

    def __init__(self, lab: Supervisor, jobs: Jobs) -> None:
        self._lab = lab
        self._jobs = jobs
        self._turn = trio.Lock()

    def _job(self, what: str, work: Work) -> Response:
        async def in_turn(step: Step) -> dict[str, Any]:
            async with self._turn:
                return await work(step)

        return answer({"job": self._jobs.start(what, in_turn).id}, 202)

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/v1/farm", self.declared),
            Route("/v1/plan", self.plan, methods=["POST"]),
            Route("/v1/up", self.up, methods=["POST"]),
            Route("/v1/down", self.down, methods=["POST"]),
            Route("/v1/losses", self.losses, methods=["POST"]),
            Route("/v1/scale", self.scale, methods=["POST"]),
        ]

    async def declared(self, request: Request) -> Response:
        """The farm as it was declared last."""
        farm = await read_farm(self._lab.state_dir)
        return answer({"farm": None if farm is None else farm_to_dict(farm)})

    async def plan(self, request: Request) -> Response:
        """What up would do."""
        wanted = await read_object(request, {"farm": dict}, limit=_FARM_LIMIT)
        return answer(plan_view(await plan_up(self._lab, _farm(wanted))))

    async def up(self, request: Request) -> Response:
        """Have the machines of a farm and no others."""
        keys: Keys = {"farm": dict, "restart": bool, "grace": _NUMBER}
        wanted = await read_object(request, keys, limit=_FARM_LIMIT)
        farm = _farm(wanted)

        async def work(step: Step) -> dict[str, Any]:
            restart, grace = wanted.get("restart", False), wanted.get("grace")
            return outcome_view(
                await up(self._lab, farm, restart=restart, grace=grace, tell=_telling(step))
            )

        return self._job("up", work)

    async def down(self, request: Request) -> Response:
        """Take machines of the farm down."""
        keys: Keys = {"names": list, "grace": _NUMBER, "deadline": _NUMBER, "delete_disks": bool}
        wanted = await read_object(request, keys)
        names = _names(wanted)

        async def work(step: Step) -> dict[str, Any]:
            outcome = await down(
                self._lab,
                names=names,
                grace=wanted.get("grace"),
                deadline=wanted.get("deadline", float("inf")),
                delete_disks=wanted.get("delete_disks", False),
                tell=_telling(step),
            )
            others = self._lab.kept.keys() - of_farm(self._lab).keys()
            return {**outcome_view(outcome), "others": [] if names else sorted(others)}

        return self._job("down", work)

    async def losses(self, request: Request) -> Response:
        """What a down would lose of each machine."""
        wanted = await read_object(request, {"names": list, "delete_disks": bool})
        delete = wanted.get("delete_disks", False)
        found = await lost_by_down(self._lab, _names(wanted), delete_disks=delete)
        return answer({"machines": {name: attrs.asdict(loss) for name, loss in found.items()}})

    async def scale(self, request: Request) -> Response:
        """Have so many machines of one table."""
        wanted = await read_object(request, {"group": str, "count": int})
        if missing := {"group", "count"} - wanted.keys():
            raise Refused(f"the request lacks {' and '.join(sorted(missing))}")

        async def work(step: Step) -> dict[str, Any]:
            group, count = wanted["group"], wanted["count"]
            return outcome_view(await scale(self._lab, group, count, tell=_telling(step)))

        return self._job("scale", work)


def _farm(wanted: dict[str, Any]) -> Farm:
    if "farm" not in wanted:
        raise Refused("the request lacks farm")
    return farm_from_dict(wanted["farm"], source="the farm")


def _names(wanted: dict[str, Any]) -> list[str] | None:
    names: list[str] | None = wanted.get("names")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise Refused("names must be a list of texts")
    return names


def _telling(step: Step) -> Tell:
    def tell(progress: Progress) -> None:
        step(attrs.asdict(progress))

    return tell


def outcome_view(outcome: Outcome) -> dict[str, Any]:
    """What became of each machine."""
    machines = [attrs.asdict(result) for result in outcome.machines.values()]
    return {"went_well": outcome.went_well, "machines": machines}


def plan_view(plan: Plan) -> dict[str, Any]:
    """The steps, each with what it is for."""
    return {"is_empty": plan.is_empty, "steps": [_step_view(step) for step in plan.steps]}


def _step_view(step: farm_plan.Step) -> dict[str, Any]:
    view: dict[str, Any] = {"step": type(step).__name__, "name": step.name}
    for key in ("changes", "needing"):
        if changes := getattr(step, key, ()):
            view[key] = [attrs.asdict(change) for change in changes]
    if flaws := getattr(step, "flaws", ()):
        view["flaws"] = [attrs.asdict(flaw) for flaw in flaws]
    if getattr(step, "saved", False):
        view["saved"] = True
    return {**view, "running": getattr(step, "running", True)}
