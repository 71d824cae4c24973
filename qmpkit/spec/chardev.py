"""Byte channels between QEMU and us: monitor, serial consoles, guest agent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.addresses import Place
from qmpkit.spec.given import items_of
from qmpkit.spec.names import chardev_id, id_problem
from qmpkit.spec.options import Json, keyvals

__all__ = [
    "AGENT_PORT",
    "Endpoint",
    "FdEndpoint",
    "NamedEndpoint",
    "PathEndpoint",
    "Serial",
    "agent_device",
    "chardev_option",
    "monitor_option",
    "serial_device",
    "socket_option",
    "serial_option",
    "serial_faults",
    "to_serials",
    "virtio_serial_device",
]

AGENT_PORT = "org.qemu.guest_agent.0"
"""The name qemu-guest-agent looks for in every guest."""

_VIRTIO_LIMIT = 30  # of the controller's 31 ports one is the agent's
_RESERVED = {"qmp", "tools", "agent"}


@attrs.frozen
class FdEndpoint:
    """A socket that QEMU inherits as descriptor `fd`: connected, or with `listen` listening."""

    fd: int
    listen: bool = False


@attrs.frozen
class PathEndpoint:
    """A unix socket that QEMU itself makes at `path`, and listens on."""

    path: str


@attrs.frozen
class NamedEndpoint:
    """A descriptor that a QEMU which runs was handed over under this `name` (`getfd`)."""

    name: str


Endpoint = FdEndpoint | PathEndpoint


@attrs.frozen
class Serial:
    """A console: "isa" is the board's own port, "virtio" a virtio console (hvc0 …).

    A PC has four COM ports (ttyS0 …), virt one: ttyAMA0 on aarch64, ttyS0 on riscv64.
    """

    name: str = "serial0"
    kind: Literal["isa", "virtio"] = "isa"


def to_serials(value: int | Iterable[Serial | str]) -> tuple[Serial, ...]:
    """A number makes that many of the board's ports, `serial0` and on; a string names one."""
    hint = 'a number, or names: ["serial0"]'
    if isinstance(value, int):
        if value < 0 or isinstance(value, bool):
            raise SpecInvalid([Fault("serials", f"cannot be {value!r}", hint)])
        return tuple(Serial(f"serial{number}") for number in range(value))
    items = items_of(value, "serials", hint, (Serial, str))
    return tuple(Serial(item) if isinstance(item, str) else item for item in items)


def serial_faults(serials: tuple[Serial, ...]) -> Iterator[Fault]:
    """Names, and the consoles that a virtio controller has room for."""
    for number, serial in enumerate(serials):
        where = f"serials[{number}].name"
        if problem := id_problem(serial.name):
            yield Fault(where, problem)
        elif serial.name in _RESERVED:
            yield Fault(where, f"{serial.name!r} is the name of another channel")
    if sum(serial.kind == "virtio" for serial in serials) > _VIRTIO_LIMIT:
        yield Fault("serials", f"a virtio controller has room for {_VIRTIO_LIMIT} consoles")


def chardev_option(channel: str, endpoint: Endpoint) -> str:
    """`-chardev` of one channel."""
    pairs: list[tuple[str, str | int | bool]] = [("id", chardev_id(channel))]
    if isinstance(endpoint, PathEndpoint):
        pairs.append(("path", endpoint.path))
    else:
        pairs.append(("fd", endpoint.fd))
    if isinstance(endpoint, PathEndpoint) or endpoint.listen:
        # wait=off: QEMU must not stop in its start-up until somebody connects.
        pairs += [("server", True), ("wait", False)]
    return keyvals("socket", pairs)


def socket_option(channel: str, path: str) -> str:
    """`-chardev` of a channel on a unix socket that somebody else listens on."""
    return keyvals("socket", [("id", chardev_id(channel)), ("path", path)])


def monitor_option(channel: str) -> str:
    """`-mon` that speaks QMP on a channel."""
    return keyvals("", [("chardev", chardev_id(channel)), ("mode", "control")])


def virtio_serial_device(device_id: str, place: Place) -> Json:
    """The controller of agent port and virtio consoles."""
    return {"driver": place.virtio("serial"), "id": device_id, **place.properties()}


def agent_device(device_id: str, controller: str, channel: str) -> Json:
    """The guest agent's port. QEMU reports it opened or closed only when it has an id."""
    return {
        "driver": "virtserialport",
        "id": device_id,
        "bus": f"{controller}.0",
        # Port 0 belongs to the first virtio console, also where there is none.
        "nr": 1,
        "chardev": chardev_id(channel),
        "name": AGENT_PORT,
    }


def serial_option(serial: Serial) -> str:
    """`-serial` of a port that is part of the board and takes no `-device`."""
    return f"chardev:{chardev_id(serial.name)}"


def serial_device(serial: Serial, number: int, controller: str) -> Json:
    """`number` counts the ports of the same kind."""
    if serial.kind == "isa":
        return {
            "driver": "isa-serial",
            "id": serial.name,
            "chardev": chardev_id(serial.name),
            "index": number,
        }
    return {
        "driver": "virtconsole",
        "id": serial.name,
        "bus": f"{controller}.0",
        "nr": number if number == 0 else number + 1,
        "chardev": chardev_id(serial.name),
    }
