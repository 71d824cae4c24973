"""The API's part about the disks of machines that are up: their layers, snapshots, moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.block.snapshots import known_snapshot, sizes_of
from qmpkit.server.answers import Refused, answer
from qmpkit.server.backing_up import BACKUP_KEYS, backup_work
from qmpkit.server.bodies import Keys, read_object, whole_number
from qmpkit.server.jobs import Jobs, Step, telling
from qmpkit.spec.block import DiskFormat
from qmpkit.spec.limits import IoLimits
from qmpkit.spec.snapshots import Snapshot
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.vm import VM

__all__ = ["DiskApi", "snapshot_view"]

Find = Callable[[Request], Kept]
"""The machine that a request means."""

_RESTART_GRACE = 60.0  # seconds that a machine may take to be up again after a revert

_SPEED: Keys = {"speed": int}
_LIMITS: Keys = {
    field.name: int if field.converter is None else (int, str) for field in attrs.fields(IoLimits)
}


class DiskApi:
    """What moves data is a job, whose steps tell how far it is.

    A machine that is down has its disks opened for it, and cannot be started meanwhile.
    """

    def __init__(self, lab: Supervisor, jobs: Jobs, find: Find) -> None:
        self._lab = lab
        self._jobs = jobs
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths."""
        one = "/v1/machines/{name}"
        point, disk = f"{one}/snapshots/{{snapshot}}", f"{one}/disks/{{disk}}"
        return [
            Route(f"{one}/snapshots", self.snapshots),
            Route(f"{one}/snapshots", self.take, methods=["POST"]),
            Route(point, self.delete, methods=["DELETE"]),
            Route(f"{point}/load", self.load, methods=["POST"]),
            Route(f"{point}/rename", self.rename, methods=["POST"]),
            Route(f"{point}/revert", self.revert, methods=["POST"]),
            Route(f"{one}/disks", self.disks),
            Route(f"{one}/backup", self.back_up, methods=["POST"]),
            Route(f"{disk}/move", self.move, methods=["POST"]),
            Route(f"{disk}/flatten", self.flatten, methods=["POST"]),
            Route(f"{disk}/resize", self.resize, methods=["POST"]),
            Route(f"{disk}/limit", self.limit, methods=["POST"]),
            Route(f"{disk}/insert", self.insert, methods=["POST"]),
            Route(f"{disk}/eject", self.eject, methods=["POST"]),
        ]

    # Snapshots

    async def snapshots(self, request: Request) -> Response:
        """All of a machine, and the one that it goes on from."""
        spec = self._find(request).spec
        sizes = await sizes_of(spec.snapshots)
        points = [snapshot_view(it) | {"bytes": sizes.get(it.name)} for it in spec.snapshots]
        return answer({"snapshots": points, "current": spec.snapshot})

    async def take(self, request: Request) -> Response:
        """Take one: of the disks, and of the memory with ram (in the images) or ram_file."""
        kept = self._find(request)
        keys: Keys = {
            "name": str,
            "disks": list,
            "folder": str,
            "freeze": bool,
            "ram": bool,
            "ram_file": bool,
            "description": str,
        }
        asked = await read_object(request, keys)
        name, about = asked.get("name", ""), asked.get("description", "")
        disks = asked.get("disks")
        if disks is not None and not all(isinstance(disk, str) for disk in disks):
            raise Refused("disks must be a list of texts")
        if asked.get("ram") and (disks is not None or "folder" in asked or asked.get("freeze")):
            raise Refused("a snapshot with ram is of all disks, and the images hold it")

        if asked.get("ram") and asked.get("ram_file"):
            raise Refused("the memory is in the images (ram) or in a file (ram_file), not in both")
        folder = _absolute(asked.get("folder"))

        async def work(step: Step) -> dict[str, Any]:
            async with self._on(kept) as machine:
                points, told = machine.snapshots, telling(step)
                if asked.get("ram"):
                    point = await points.save(name, description=about, progress=told)
                else:
                    point = await points.take(
                        name,
                        disks=disks,
                        folder=folder,
                        freeze=asked.get("freeze", False),
                        ram=asked.get("ram_file", False),
                        description=about,
                        progress=told,
                    )
                return snapshot_view(point)

        return self._job(f"snapshot {kept.name}", work)

    async def delete(self, request: Request) -> Response:
        """Forget one; the machine's data stay."""
        kept, name = self._find(request), request.path_params["snapshot"]
        speed = whole_number(request, "speed") or 0

        async def work(step: Step) -> dict[str, Any]:
            async with self._on(kept) as machine:
                await machine.snapshots.delete(name, speed=speed, progress=telling(step))
            return {"name": name}

        return self._job(f"delete snapshot {name} of {kept.name}", work)

    async def load(self, request: Request) -> Response:
        """Go back to one that has the memory too."""
        kept, name = self._find(request), request.path_params["snapshot"]

        async def work(step: Step) -> dict[str, Any]:
            async with self._on(kept) as machine:
                await machine.snapshots.load(name, progress=telling(step))
            return {"name": name}

        return self._job(f"load snapshot {name} of {kept.name}", work)

    async def rename(self, request: Request) -> Response:
        """Give one another name."""
        kept, name = self._find(request), request.path_params["snapshot"]
        to = (await read_object(request, {"to": str})).get("to", "")
        _refuse_busy(kept)
        async with self._on(kept) as machine:
            await machine.snapshots.rename(name, to)
        return answer({"name": to})

    async def revert(self, request: Request) -> Response:
        """Start from one whose disks are layers; with stop, a machine that is up is restarted."""
        kept, point = self._find(request), request.path_params["snapshot"]
        asked = await read_object(request, {"stop": bool, "grace": (int, float), "memory": bool})

        async def work(step: Step) -> dict[str, Any]:
            before, name = kept.declared, kept.name
            known_snapshot(kept.spec, point)
            if asked.get("stop"):
                grace = asked.get("grace")
                await self._lab.declare(name, "stopped", powerdown_grace=grace)
            try:
                left = await self._lab.revert(name, point, memory=asked.get("memory", True))
            finally:
                if asked.get("stop"):
                    # Also for a client that has given it up: it was up before.
                    with trio.move_on_after(_RESTART_GRACE, shield=True):
                        await self._lab.declare(name, before)
            return {"name": point, "left": list(left)}

        return self._job(f"revert {kept.name} to {point}", work)

    # Disks

    async def disks(self, request: Request) -> Response:
        """The layers of every disk; of one that is down, of those that it can write to."""
        kept = self._find(request)
        chains: dict[str, Any] = {}
        _refuse_turn(kept)
        if kept.vm is None and all(disk.is_readonly for disk in kept.spec.disks):
            return answer({"disks": chains})  # none is to be opened
        async with self._on(kept) as machine:
            for disk in machine.spec.disks:
                if not disk.is_readonly or kept.vm is not None:
                    chain = await machine.disks.chain(disk.id)
                    chains[disk.id] = [attrs.asdict(layer) for layer in chain]
        return answer({"disks": chains})

    async def move(self, request: Request) -> Response:
        """Have it in another file."""
        kept, disk = self._find(request), request.path_params["disk"]
        asked = await read_object(request, {"target": str, "format": str, **_SPEED})
        target, format = _absolute(asked.get("target", "")), asked.get("format", "qcow2")
        if target is None or format not in get_args(DiskFormat):
            raise Refused("target must be a path and format qcow2, raw or luks")

        async def work(step: Step) -> dict[str, Any]:
            speed, told = asked.get("speed", 0), telling(step)
            async with self._on(kept) as machine:
                moved = await machine.disks.move(
                    disk, target, format=format, speed=speed, progress=told
                )
            return {"file": str(moved)}

        return self._job(f"move {disk} of {kept.name}", work)

    async def flatten(self, request: Request) -> Response:
        """Have it without layers."""
        kept, disk = self._find(request), request.path_params["disk"]
        speed = (await read_object(request, _SPEED)).get("speed", 0)

        async def work(step: Step) -> dict[str, Any]:
            async with self._on(kept) as machine:
                await machine.disks.flatten(disk, speed=speed, progress=telling(step))
            return {"disk": disk}

        return self._job(f"flatten {disk} of {kept.name}", work)

    async def resize(self, request: Request) -> Response:
        """Make it larger."""
        kept, disk = self._find(request), request.path_params["disk"]
        size = (await read_object(request, {"size": (int, str)})).get("size")
        if size is None:
            raise Refused("size is missing: bytes, or a text as 20GiB")
        _refuse_busy(kept)
        async with self._on(kept) as machine:
            return answer({"size": await machine.disks.resize(disk, size)})

    async def limit(self, request: Request) -> Response:
        """Bound what its guest may read and write each second; without any, no bound."""
        kept, disk = self._find(request), request.path_params["disk"]
        limits = IoLimits(**await read_object(request, _LIMITS))
        _refuse_busy(kept)
        async with self._on(kept) as machine:
            await machine.disks.limit(disk, limits)
        return answer({"disk": disk, "limits": attrs.asdict(limits)})

    async def insert(self, request: Request) -> Response:
        """Put a medium into a CD drive."""
        kept, disk = self._find(request), request.path_params["disk"]
        asked = await read_object(request, {"file": str, "format": str, "force": bool})
        file, format = _absolute(asked.get("file", "")), asked.get("format")
        if file is None or format not in (None, "qcow2", "raw"):
            raise Refused("file must be a path and format qcow2 or raw")
        _refuse_busy(kept)
        async with self._on(kept) as machine:
            force = asked.get("force", False)
            await machine.disks.insert(disk, file, format=format, force=force)
        return answer({"disk": disk, "file": str(file)})

    async def eject(self, request: Request) -> Response:
        """Take out what is in a CD drive."""
        kept, disk = self._find(request), request.path_params["disk"]
        force = (await read_object(request, {"force": bool})).get("force", False)
        _refuse_busy(kept)
        async with self._on(kept) as machine:
            await machine.disks.eject(disk, force=force)
        return answer({"disk": disk, "file": ""})

    async def back_up(self, request: Request) -> Response:
        """All disks of a machine, as they are now, into a folder of this host."""
        kept = self._find(request)
        work = backup_work(lambda: self._on(kept), await read_object(request, BACKUP_KEYS))
        return self._job(f"back up {kept.name}", work)

    @asynccontextmanager
    async def _on(self, kept: Kept) -> AsyncIterator[VM | AtRest]:
        """The machine as it runs, or its disks at rest."""
        if kept.vm is not None:
            yield kept.vm
        else:
            async with self._lab.at_rest(kept.name) as machine:
                yield machine

    def _job(self, what: str, work: Callable[[Step], Awaitable[dict[str, Any]]]) -> Response:
        return answer({"job": self._jobs.start(what, work).id}, 202)


def _refuse_turn(kept: Kept) -> None:
    """What is answered at once is not to wait for a start, or for another job at rest."""
    if kept.vm is None and kept.changing.locked():
        raise Refused(f"machine {kept.name!r} is about to be something else: ask again", 409)


def _refuse_busy(kept: Kept) -> None:
    """Nor for a job that changes the disks of one that runs."""
    _refuse_turn(kept)
    if kept.vm is None:
        return
    kept.vm.machine.changing.must_stay()
    if kept.vm.machine.changing.locked():
        raise Refused(f"the disks of machine {kept.name!r} are being changed: ask again", 409)


def snapshot_view(point: Snapshot) -> dict[str, Any]:
    """What the API shows of a snapshot."""
    return attrs.asdict(point)


def _absolute(path: str | None) -> Path | None:
    """A client's path, which means nothing relative to the daemon's directory."""
    if path is None:
        return None
    if not path.startswith("/") or "\0" in path:
        raise Refused(f"a path must be absolute, not {path!r}")
    return Path(path)
