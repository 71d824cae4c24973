"""The API's part about devices that come and go while a machine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.hotplug.places import root_ports
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.server.answers import Refused, answer
from qmpkit.server.bodies import read_object, whole_number
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic
from qmpkit.spec.peripherals import Rng, Share
from qmpkit.spec.pluggable import (
    NETWORK,
    Pluggable,
    pluggable_from_dict,
    pluggable_to_dict,
)
from qmpkit.spec.suggest import among, unknown_key
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.vm import VM

__all__ = ["DeviceApi", "running_vm"]

_JOIN = ("kind", "mac", "network")


class DeviceApi:
    """A machine's disks, NICs and other devices: shown, plugged, unplugged."""

    def __init__(self, lab: Supervisor, find: Callable[[Request], Kept]) -> None:
        self._lab = lab
        self._find = find

    def routes(self) -> list[Route]:
        """Its paths."""
        all_ = "/v1/machines/{name}/devices"
        return [
            Route(all_, self.devices),
            Route(all_, self.add, methods=["POST"]),
            Route(f"{all_}/{{device}}", self.remove, methods=["DELETE"]),
            Route(f"{all_}/{{device}}/link", self.link, methods=["POST"]),
        ]

    async def devices(self, request: Request) -> Response:
        """All that its spec has, and the root ports that are left."""
        spec = self._find(request).spec
        ports = root_ports(spec)
        return answer(
            {
                "devices": [pluggable_to_dict(it) for it in _all(spec)],
                "ports": {"used": ports.used, "empty": ports.empty},
            }
        )

    async def add(self, request: Request) -> Response:
        """Plug one in."""
        kept = self._find(request)
        body = await read_object(request, None)  # its keys are those of its kind
        if body.get("kind") == NETWORK:
            return await self._join(kept, body)
        item = pluggable_from_dict(body, "the request")
        _refuse_relative(item)
        vm = running_vm(kept)
        if isinstance(item, Disk):
            plugged: Pluggable = await vm.disks.add(item)
        elif isinstance(item, Nic):
            plugged = await vm.nics.add(item)
        else:
            plugged = await vm.devices.add(item)
        return answer(pluggable_to_dict(plugged))

    async def _join(self, kept: Kept, body: Mapping[str, Any]) -> Response:
        """A NIC in a network of the farm: `network`, and perhaps `mac`."""
        faults = [unknown_key(key, key, _JOIN) for key in body if key not in _JOIN]
        if faults:
            raise SpecInvalid(faults, "the request")
        network, mac = body.get("network"), body.get("mac")
        if not isinstance(network, str) or not isinstance(mac, str | None):
            raise Refused("network must be the name of one, and mac an address")
        running_vm(kept)
        nic = await self._lab.join(kept.name, network, mac=mac)
        return answer(pluggable_to_dict(nic))

    async def remove(self, request: Request) -> Response:
        """Take one out."""
        kept, name = self._find(request), request.path_params["device"]
        vm = running_vm(kept)
        grace = whole_number(request, "grace")
        if grace is not None and grace < 0:
            raise Refused("grace must be 0 or more seconds")
        seconds = UNPLUG_GRACE if grace is None else float(grace)
        item = _one(kept, vm.spec, name)
        if isinstance(item, Disk):
            unmounted = bool(whole_number(request, "unmounted"))
            await vm.disks.remove(name, unmounted=unmounted, grace=seconds)
        elif isinstance(item, Nic):
            await self._lab.leave(kept.name, name, grace=seconds)
        else:
            await vm.devices.remove(name, grace=seconds)
        return answer({"id": name})

    async def link(self, request: Request) -> Response:
        """Pull a NIC's cable, or put it in."""
        kept, name = self._find(request), request.path_params["device"]
        up = (await read_object(request, {"up": bool})).get("up")
        if up is None:
            raise Refused("up is missing: true or false")
        await running_vm(kept).nics.set_link(name, up=up)
        return answer({"id": name, "link": up})


def _all(spec: MachineSpec) -> tuple[Pluggable, ...]:
    return (*spec.disks, *spec.nics, *spec.devices)


def _one(kept: Kept, spec: MachineSpec, name: str) -> Pluggable:
    found = {item.id: item for item in _all(spec)}
    if name not in found:
        fault = Fault("device", f"it has no device {name!r}", among(name, found))
        raise SpecInvalid([fault], f"machine {kept.name!r}")
    return found[name]


def running_vm(kept: Kept) -> VM:
    """The machine's VM; refused at once when it is down, or something else changes it."""
    if kept.vm is None:
        raise Refused(f"machine {kept.name!r} is {kept.state}: change its spec instead", 409)
    kept.vm.machine.changing.must_stay()
    if kept.vm.machine.changing.locked():
        raise Refused(f"machine {kept.name!r} is being changed: ask again", 409)
    return kept.vm


def _refuse_relative(item: Pluggable) -> None:
    """A client's path means nothing relative to the daemon's directory."""
    paths: dict[str, Any] = {}
    match item:
        case Disk():
            paths["file"] = item.file
            if isinstance(item.make, Overlay):
                paths["make.file"] = item.make.file
            if item.luks is not None:
                paths["luks.key_file"] = item.luks.key_file
                for number, base in enumerate(item.luks.bases):
                    paths[f"luks.bases[{number}].file"] = base.file
                    paths[f"luks.bases[{number}].key_file"] = base.key_file
        case Rng():
            paths["file"] = item.file
        case Share():
            paths |= {"path": item.path, "socket": item.socket}
    for where, path in paths.items():
        if path and (not path.startswith("/") or "\0" in path):
            raise Refused(f"{where} must be an absolute path, not {path!r}")
