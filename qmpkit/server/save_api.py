"""The API's part about machines that are saved, and checkpoints of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.machine.state_forms import Form
from qmpkit.server.answers import Refused, answer
from qmpkit.server.bodies import read_object
from qmpkit.server.jobs import Jobs, Step, Work, telling
from qmpkit.spec.checkpoints import Checkpoint
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["SaveApi"]


class SaveApi:
    """What writes or reads RAM is a job."""

    def __init__(self, lab: Supervisor, jobs: Jobs, find: Callable[[Request], Kept]) -> None:
        self._lab = lab
        self._jobs = jobs
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths; before that of a machine's other actions."""
        one, point = "/v1/machines/{name}", "/v1/checkpoints/{checkpoint}"
        return [
            Route(f"{one}/save", self.save, methods=["POST"]),
            Route(f"{one}/saved", self.discard, methods=["DELETE"]),
            Route("/v1/checkpoints", self.checkpoints),
            Route("/v1/checkpoints", self.take, methods=["POST"]),
            Route(point, self.delete, methods=["DELETE"]),
            Route(f"{point}/rewind", self.rewind, methods=["POST"]),
        ]

    async def save(self, request: Request) -> Response:
        """Save a machine beside its record, and end it."""
        name = self._find(request).name
        ram = (await read_object(request, {"ram": str})).get("ram", "plain")
        if ram not in get_args(Form):
            raise Refused(f"ram must be {', '.join(get_args(Form))}, not {ram!r}")

        async def work(step: Step) -> dict[str, Any]:
            saved = await self._lab.save(name, ram=ram, progress=telling(step))
            return {"name": name, "ram": saved.ram, "bytes": saved.size, "time": saved.time}

        return self._job(f"save {name}", work)

    async def discard(self, request: Request) -> Response:
        """Have a machine that is saved boot when it is started."""
        kept = self._find(request)
        await self._lab.discard_saved(kept.name)
        return answer({"name": kept.name})

    async def checkpoints(self, request: Request) -> Response:
        """All, the oldest first."""
        return answer({"checkpoints": [_view(it) for it in await self._lab.checkpoints()]})

    async def take(self, request: Request) -> Response:
        """Take one of some machines, or of all that are up."""
        asked = await read_object(request, {"name": str, "machines": list, "description": str})
        machines = asked.get("machines")
        if machines is not None and not all(isinstance(it, str) for it in machines):
            raise Refused("machines must be a list of texts")

        async def work(_: Step) -> dict[str, Any]:
            about = asked.get("description", "")
            name = asked.get("name", "")
            return _view(await self._lab.checkpoint(name, machines, description=about))

        return self._job("take a checkpoint", work)

    async def delete(self, request: Request) -> Response:
        """Forget one; the machines' data stay."""
        name = request.path_params["checkpoint"]

        async def work(_: Step) -> dict[str, Any]:
            await self._lab.delete_checkpoint(name)
            return {"name": name}

        return self._job(f"delete checkpoint {name}", work)

    async def rewind(self, request: Request) -> Response:
        """Have its machines as they were then."""
        name = request.path_params["checkpoint"]

        async def work(_: Step) -> dict[str, Any]:
            return _view(await self._lab.rewind(name))

        return self._job(f"rewind to {name}", work)

    def _job(self, what: str, work: Work) -> Response:
        return answer({"job": self._jobs.start(what, work).id}, 202)


def _view(point: Checkpoint) -> dict[str, Any]:
    return attrs.asdict(point)
