"""The API's part about processors and memory that come and go while a machine runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.operations.hotplug.balloon import BALLOON_GRACE
from qmpkit.operations.hotplug.cpus import ONLINE_GRACE, places_of
from qmpkit.operations.hotplug.growing import RESIZE_GRACE
from qmpkit.operations.hotplug.memory import MODULE_GRACE
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.server.answers import Refused, answer
from qmpkit.server.bodies import Keys, read_object, whole_number
from qmpkit.server.device_api import running_vm
from qmpkit.supervisor.kept import Kept
from qmpkit.vm import VM

__all__ = ["ResourceApi"]

_NUMBER = (int, type(None))
_CPUS: Keys = {
    "count": int,
    "socket": _NUMBER,
    "core": _NUMBER,
    "thread": _NUMBER,
    "online": bool,
    "grace": _NUMBER,
}
_DIMM: Keys = {"size": (str, int), "node": _NUMBER}
_RESIZE: Keys = {"size": (str, int), "device": (str, type(None)), "grace": _NUMBER}
_BALLOON: Keys = {"size": (str, int), "grace": _NUMBER}


class ResourceApi:
    """A machine's processors and memory: shown, added, removed."""

    def __init__(self, find: Callable[[Request], Kept]) -> None:
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths."""
        one = "/v1/machines/{name}"
        return [
            Route(f"{one}/cpus", self.cpus),
            Route(f"{one}/cpus", self.add_cpus, methods=["POST"]),
            Route(f"{one}/cpus/{{cpu}}", self.remove_cpu, methods=["DELETE"]),
            Route(f"{one}/memory", self.memory),
            Route(f"{one}/memory", self.add_memory, methods=["POST"]),
            Route(f"{one}/memory/balloon", self.balloon, methods=["POST"]),
            Route(f"{one}/memory/resize", self.resize, methods=["POST"]),
            Route(f"{one}/memory/{{dimm}}", self.remove_memory, methods=["DELETE"]),
        ]

    async def cpus(self, request: Request) -> Response:
        """All places, and which hold a processor; of one that is down, which would."""
        kept = self._find(request)
        found = places_of(kept.spec) if kept.vm is None else await kept.vm.cpus.list()
        cpus = [attrs.asdict(it) for it in found]
        return answer({"cpus": cpus, "of_the_start": kept.spec.cpu.cpus})

    async def add_cpus(self, request: Request) -> Response:
        """Plug some in."""
        asked = await read_object(request, _CPUS)
        grace = _seconds(asked.pop("grace", None), ONLINE_GRACE)
        added = await self._vm(request).cpus.add(asked.pop("count", 1), grace=grace, **asked)
        return answer({"cpus": [attrs.asdict(it) for it in added]})

    async def remove_cpu(self, request: Request) -> Response:
        """Take one out; with unsafe=1 also under TCG."""
        name, grace = request.path_params["cpu"], _grace(request, UNPLUG_GRACE)
        unsafe = bool(whole_number(request, "unsafe"))
        await self._vm(request).cpus.remove(name, unsafe=unsafe, grace=grace)
        return answer({"id": name})

    async def memory(self, request: Request) -> Response:
        """What its spec has, and how much the balloon leaves of it."""
        kept = self._find(request)
        memory, vm = kept.spec.memory, kept.vm
        left = await vm.memory.balloon_size() if vm is not None and vm.spec.balloon else None
        return answer(
            {
                "size": memory.size,
                "maxmem": memory.maxmem,
                "slots": memory.slots,
                "dimms": [attrs.asdict(it) for it in memory.dimms],
                "balloon": left,
            }
        )

    async def add_memory(self, request: Request) -> Response:
        """Plug a module in."""
        asked = await read_object(request, _DIMM)
        size = _size(asked)
        return answer(
            attrs.asdict(await self._vm(request).memory.add(size, node=asked.get("node")))
        )

    async def remove_memory(self, request: Request) -> Response:
        """Take a module out."""
        name, grace = request.path_params["dimm"], _grace(request, MODULE_GRACE)
        await self._vm(request).memory.remove(name, grace=grace)
        return answer({"id": name})

    async def balloon(self, request: Request) -> Response:
        """Have the guest come to a size."""
        asked = await read_object(request, _BALLOON)
        size, grace = _size(asked), _seconds(asked.get("grace"), BALLOON_GRACE)
        vm = self._vm(request)
        await vm.memory.balloon(size, grace=grace)
        return answer({"balloon": await vm.memory.balloon_size()})

    async def resize(self, request: Request) -> Response:
        """Have the guest use so much of a virtio-mem device."""
        asked = await read_object(request, _RESIZE)
        size, grace = _size(asked), _seconds(asked.get("grace"), RESIZE_GRACE)
        vm = self._vm(request)
        device = await vm.memory.resize(size, device=asked.get("device"), grace=grace)
        return answer(attrs.asdict(device))

    def _vm(self, request: Request) -> VM:
        return running_vm(self._find(request))


def _size(asked: dict[str, Any]) -> str | int:
    if "size" not in asked:
        raise Refused('size is missing: "1GiB", or a number of bytes')
    size: str | int = asked["size"]
    return size


def _grace(request: Request, usual: float) -> float:
    return _seconds(whole_number(request, "grace"), usual)


def _seconds(given: int | None, usual: float) -> float:
    if given is not None and given < 0:
        raise Refused("grace must be 0 or more seconds")
    return usual if given is None else float(given)
