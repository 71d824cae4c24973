"""The API's part about what machines use of their host, and what they are given of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.server.answers import NotUp, answer
from qmpkit.server.bodies import Keys, read_object, whole_number
from qmpkit.server.device_api import running_vm
from qmpkit.server.views import in_counting_order
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.vm import VM

__all__ = ["TuneApi"]

_PATIENCE = 2.0
"""Seconds in which a QEMU has to tell what it has used: one that is silent holds up nobody."""

_TUNE: Keys = {"pin": (str, list, type(None)), "resources": dict}


class TuneApi:
    """Counters of machines that are up, and their place on the host."""

    def __init__(self, lab: Supervisor, find: Callable[[Request], Kept]) -> None:
        self._lab = lab
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths."""
        one = "/v1/machines/{name}"
        return [
            Route("/v1/stats", self.all_stats),
            Route(f"{one}/stats", self.stats),
            Route(f"{one}/tune", self.seats),
            Route(f"{one}/tune", self.tune, methods=["POST"]),
        ]

    async def all_stats(self, request: Request) -> Response:
        """Of all that are up; those that do not answer are named with the reason."""
        found: dict[str, dict[str, Any]] = {}

        async def ask(kept: Kept, vm: VM) -> None:
            silent = {"machine": kept.name, "error": f"no answer within {_PATIENCE:g} s"}
            found[kept.name] = silent
            with trio.move_on_after(_PATIENCE):
                try:
                    seen = attrs.asdict(await vm.stats(pss=False))
                except QmpkitError as error:
                    seen = {"machine": kept.name, "error": str(error)}
                found[kept.name] = seen
            found[kept.name] |= {"state": kept.state, "cpus": kept.spec.cpu.present}

        async with trio.open_nursery() as nursery:
            for kept in self._lab.kept.values():
                if kept.vm is not None:
                    nursery.start_soon(ask, kept, kept.vm)
        return answer({"machines": [found[name] for name in sorted(found, key=in_counting_order)]})

    async def stats(self, request: Request) -> Response:
        """Of one; with dirty_rate=N it is measured for so many seconds."""
        vm = self._vm(request)
        seconds = whole_number(request, "dirty_rate") or 0
        return answer(attrs.asdict(await vm.stats(dirty_rate=seconds)))

    async def seats(self, request: Request) -> Response:
        """Its threads, where its spec puts them, its limits, and how long it has waited."""
        vm = self._vm(request)
        try:
            pressure = {kind: attrs.asdict(it) for kind, it in (await vm.tune.pressure()).items()}
        except HostLacks:  # it has no limit, so no control group of its own
            pressure = {}
        threads = attrs.asdict(await vm.tune.threads())
        return answer({**_place(vm), "threads": threads, "pressure": pressure})

    async def tune(self, request: Request) -> Response:
        """Change what it is given: fields that are null are taken away, others stay."""
        asked = await read_object(request, _TUNE)
        vm = running_vm(self._find(request))
        done = await vm.tune.apply(lambda spec: _tuned(spec, asked))
        return answer({**attrs.asdict(done), **_place(vm)})

    def _vm(self, request: Request) -> VM:
        kept = self._find(request)
        if kept.vm is None:
            raise NotUp(kept.name, kept.state, kept.cause, rests=not kept.tended)
        return kept.vm


def _tuned(spec: MachineSpec, asked: Mapping[str, Any]) -> MachineSpec:
    data: dict[str, Any] = spec_to_dict(spec)
    if "pin" in asked:
        data["cpu"] = {**data["cpu"], "pin": asked["pin"]}
    resources = data["resources"] | asked.get("resources", {})
    data["resources"] = {key: value for key, value in resources.items() if value is not None}
    return spec_from_dict(data, source=f"machine {spec.name!r}")


def _place(vm: VM) -> dict[str, Any]:
    data: dict[str, Any] = spec_to_dict(vm.spec)
    return {"pin": data["cpu"].get("pin"), "resources": data["resources"]}
