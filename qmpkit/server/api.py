"""The API of a daemon, version 1: what each path does, over a supervisor and its farm."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qmpkit import __version__
from qmpkit.errors import QmpkitError
from qmpkit.server.answers import NotUp, Refused, answer, on_error
from qmpkit.server.bodies import read_object, whole_number
from qmpkit.server.device_api import DeviceApi
from qmpkit.server.disk_api import DiskApi
from qmpkit.server.executing import executed
from qmpkit.server.farming import FarmApi
from qmpkit.server.files import GuestFile, put_file
from qmpkit.server.jobs import Jobs
from qmpkit.server.migrate_api import MigrateApi
from qmpkit.server.resource_api import ResourceApi
from qmpkit.server.save_api import SaveApi
from qmpkit.server.streams import (
    BEAT,
    ConsoleResponse,
    event_stream,
    job_stream,
    log_stream,
    tail_of_file,
)
from qmpkit.server.tune_api import TuneApi
from qmpkit.server.version import versioned
from qmpkit.server.views import in_counting_order, machine_view, row_view
from qmpkit.spec.names import machine_name_problem
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.vm import VM

__all__ = ["make_app"]

_ACTIONS = ("start", "stop", "restart", "pause", "resume")
_NUMBER = (int, float)


class _Api:
    def __init__(self, lab: Supervisor, jobs: Jobs, shut_down: Callable[[], None]) -> None:
        self.lab = lab
        self.jobs = jobs
        self.shut_down = shut_down
        self.started = time.time()

    # The daemon

    async def root(self, request: Request) -> Response:
        """Who answers here."""
        return answer(
            {
                "qmpkit": __version__,
                "farm": self.lab.name,
                "pid": os.getpid(),
                "started": self.started,
                "state_dir": str(self.lab.state_dir),
                "runtime_dir": str(self.lab.runtime_dir),
            }
        )

    async def shutdown(self, request: Request) -> Response:
        """The daemon ends; its machines live on."""
        self.shut_down()
        return answer({"farm": self.lab.name}, 202)

    # Machines

    async def machines(self, request: Request) -> Response:
        """All, from memory alone: one that is silent holds up nobody."""
        kept = sorted(self.lab.kept.values(), key=lambda kept: in_counting_order(kept.name))
        return answer({"machines": [row_view(it) for it in kept]})

    async def machine(self, request: Request) -> Response:
        """All that is known of one."""
        return answer(await machine_view(self.kept(request)))

    async def act(self, request: Request) -> Response:
        """Have a machine running, paused, stopped, or restarted."""
        name, action = self.kept(request).name, request.path_params["action"]
        if action not in _ACTIONS:
            raise Refused(f"no machine can {action!r}: {', '.join(_ACTIONS)}", 404)
        grace = (await read_object(request, {"grace": _NUMBER})).get("grace")
        declare = self.lab.declare

        async def work(_: object) -> dict[str, Any]:
            if action in ("stop", "restart"):
                await declare(name, "stopped", powerdown_grace=grace)
            if action in ("start", "resume", "restart"):
                await declare(name, "running")
            if action == "pause":
                await declare(name, "paused")
            return row_view(self.lab.kept[name])

        return self._job(f"{action} {name}", work)

    async def losses(self, request: Request) -> Response:
        """What is gone for good when it is forgotten."""
        saved = self.lab.saved_in(self.kept(request).name)
        return answer({"memory": saved is not None})

    async def remove(self, request: Request) -> Response:
        """Forget a machine that is down, or with force=1 any."""
        kept = self.kept(request)

        async def work(_: object) -> dict[str, Any]:
            if request.query_params.get("force") == "1":
                await self.lab.declare(kept.name, "stopped", powerdown_grace=0.0)
            discarded = self.lab.saved_in(kept.name) is not None
            await self.lab.forget(kept.name)
            return {"name": kept.name, "discarded": discarded}

        return self._job(f"rm {kept.name}", work)

    async def screenshot(self, request: Request) -> Response:
        """Its screen."""
        return Response(await self._vm(request).screenshot(), media_type="image/png")

    async def console(self, request: Request) -> Response:
        """A terminal on one of its consoles."""
        vm = self._vm(request)
        name = request.query_params.get("serial") or next(iter(vm.consoles), "")
        if name not in vm.consoles:
            raise Refused(f"machine {vm.name!r} has no console {name!r}: {_listed(vm)}", 404)
        return ConsoleResponse(vm.consoles[name])  # type: ignore[return-value]

    async def logs(self, request: Request) -> Response:
        """A log's end, and with follow=1 what comes."""
        kept = self.kept(request)
        known = [serial.name for serial in kept.spec.serials]
        name = request.query_params.get("log") or next(iter(known), "stderr")
        if name not in (*known, "stderr"):
            raise Refused(f"machine {kept.name!r} has no log {name!r}: {', '.join(known)}", 404)
        tail = whole_number(request, "tail")
        if tail is not None and tail < 0:
            raise Refused(f"tail must be 0 or more lines, not {tail}")
        start = await trio.to_thread.run_sync(tail_of_file, kept.home.logs / f"{name}.log", tail)
        follow = request.query_params.get("follow") == "1"
        if follow and (kept.vm is None or name == "stderr"):
            why = "QEMU's own words are not followed" if name == "stderr" else f"it is {kept.state}"
            raise Refused(f"cannot follow log {name!r} of machine {kept.name!r}: {why}", 409)
        return log_stream(start, kept.vm.consoles[name] if follow and kept.vm else None)

    # The guest

    async def execute(self, request: Request) -> Response:
        """Run a program in the guest; it is killed when its client goes."""
        return answer(await executed(self._vm(request), request))

    async def read_file(self, request: Request) -> Response:
        """A file out of the guest."""
        return GuestFile(self._vm(request).agent, _path(request))  # type: ignore[return-value]

    async def write_file(self, request: Request) -> Response:
        """A file into the guest."""
        vm, path = self._vm(request), _path(request)
        return answer({"bytes": await put_file(vm.agent, path, request)})

    # Events and jobs

    async def events(self, request: Request) -> Response:
        """What happens, from now on, since a number, or since a time."""
        machine = request.query_params.get("machine")
        since, moment = whole_number(request, "since"), _moment(request, "since_time")
        if moment is not None:
            since = await self.lab.last_event_before(moment)
        return event_stream(
            self.lab,
            machine,
            since,
            follow=request.query_params.get("follow", "1") == "1",
            beat=_beat(request),
        )

    async def all_jobs(self, request: Request) -> Response:
        """Those that run and the last that have ended."""
        return answer({"jobs": [job.to_dict() for job in self.jobs.all()]})

    async def job(self, request: Request) -> Response:
        """One."""
        return answer(self.jobs[request.path_params["job"]].to_dict())

    async def job_events(self, request: Request) -> Response:
        """Its steps as they come."""
        return job_stream(self.jobs[request.path_params["job"]], _beat(request))

    async def cancel_job(self, request: Request) -> Response:
        """Give it up; what was declared stays so."""
        job = self.jobs[request.path_params["job"]]
        job.scope.cancel()
        return answer(job.to_dict(), 202)

    def _job(self, what: str, work: Callable[[Any], Awaitable[dict[str, Any]]]) -> Response:
        return answer({"job": self.jobs.start(what, work).id}, 202)

    def kept(self, request: Request) -> Kept:
        """The machine that a request means."""
        name = request.path_params["name"]
        if machine_name_problem(name) or name not in self.lab.kept:
            raise Refused(f"there is no machine {name!r} in farm {self.lab.name!r}", 404)
        return self.lab.kept[name]

    def _vm(self, request: Request) -> VM:
        kept = self.kept(request)
        if kept.vm is None:
            raise NotUp(kept.name, kept.state, kept.cause, rests=not kept.tended)
        return kept.vm


def _listed(vm: VM) -> str:
    return f"it has {', '.join(vm.consoles)}" if vm.consoles else "it has none"


def _path(request: Request) -> str:
    path = request.query_params.get("path", "")
    if not path.startswith("/") or "\0" in path:
        raise Refused(f"path must be absolute, not {path!r}")
    return path


def _beat(request: Request) -> float:
    """The seconds of silence that a client wants at most; it gives milliseconds."""
    beat = whole_number(request, "beat")
    try:
        return BEAT if beat is None else max(beat, 100) / 1000
    except OverflowError:
        raise Refused("beat must be milliseconds, and not that many") from None


def _moment(request: Request, key: str) -> float | None:
    value = request.query_params.get(key)
    if value is None:
        return None
    try:
        if math.isfinite(moment := float(value)):
            return moment
    except ValueError:
        pass
    raise Refused(f"{key} must be seconds since 1970, not {value!r}")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await on_error(
        request, Refused(f"{request.url.path}: {error.detail}", error.status_code)
    )


def make_app(lab: Supervisor, jobs: Jobs, shut_down: Callable[[], None]) -> ASGIApp:
    """The ASGI application; *shut_down* is called when a client wants the daemon to end."""
    api, farm = _Api(lab, jobs, shut_down), FarmApi(lab, jobs)
    one = "/v1/machines/{name}"
    routes = [
        Route("/v1", api.root),
        Route("/v1/shutdown", api.shutdown, methods=["POST"]),
        Route("/v1/machines", api.machines),
        Route(one, api.machine),
        Route(one, api.remove, methods=["DELETE"]),
        Route(f"{one}/screenshot", api.screenshot),
        Route(f"{one}/losses", api.losses),
        Route(f"{one}/logs", api.logs),
        Route(f"{one}/console", api.console, methods=["POST"]),
        Route(f"{one}/exec", api.execute, methods=["POST"]),
        Route(f"{one}/files", api.read_file),
        Route(f"{one}/files", api.write_file, methods=["PUT"]),
        *DiskApi(lab, jobs, api.kept).routes(),
        *DeviceApi(lab, api.kept).routes(),
        *ResourceApi(api.kept).routes(),
        *TuneApi(lab, api.kept).routes(),
        *MigrateApi(lab, jobs, api.kept).routes(),
        *SaveApi(lab, jobs, api.kept).routes(),
        Route(f"{one}/{{action}}", api.act, methods=["POST"]),
        Route("/v1/events", api.events),
        Route("/v1/jobs", api.all_jobs),
        Route("/v1/jobs/{job}", api.job),
        Route("/v1/jobs/{job}", api.cancel_job, methods=["DELETE"]),
        Route("/v1/jobs/{job}/events", api.job_events),
        *farm.routes(),
    ]
    handlers = {HTTPException: _on_http, QmpkitError: on_error, ExceptionGroup: on_error}
    app = Starlette(routes=routes, exception_handlers={**handlers, Exception: on_error})
    return versioned(app)
