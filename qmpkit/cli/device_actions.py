"""What `qmpkit device` does: it asks the farm's daemon."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import machine_of
from qmpkit.cli.overrides import arguments_from
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk

__all__ = ["add_device", "list_devices", "remove_device", "set_link"]

_PATIENCE = 60.0  # seconds of silence, beside the guest's own
_PATHS = ("file", "path", "socket", "luks", "key_file")
_SHOWN = ("file", "ifname", "address", "remote", "forwards", "cid", "tag", "host", "iothread")


def list_devices(name: str, farm: str | None, *, as_json: bool) -> int:
    """`device list`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.get("machines", machine, "devices")
    if as_json:
        print_json(found)
        return Exit.OK
    ports = {device: port for port, device in found["ports"]["used"].items()}
    rows = [
        (it["id"], it["kind"], ports.get(it["id"]) or it.get("controller", "-"), _about(it))
        for it in found["devices"]
    ]
    print_table(("ID", "KIND", "AT", "WHAT"), rows, prose=True)
    left = len(found["ports"]["empty"])
    talk.note("1 root port is left" if left == 1 else f"{left} root ports are left")
    return Exit.OK


def _about(item: dict[str, Any]) -> str:
    words = [item["interface"]] if "interface" in item else []
    words += [f"{key}={_short(item[key])}" for key in _SHOWN if item.get(key)]
    return " ".join(words) + ("" if item.get("link", True) else " (cable out)")


def _short(value: Any) -> Any:
    """Forwards as they are written."""
    if not isinstance(value, list):
        return value
    return ",".join(f"{it['host']}:{it['guest']}" for it in value)


def add_device(
    name: str, kind: str, fields: Iterable[str], farm: str | None, *, as_json: bool
) -> int:
    """`device add`."""
    table = arguments_from(fields)
    _make_absolute(table)
    daemon, machine = machine_of(name, farm)
    plugged = daemon.post("machines", machine, "devices", body={"kind": kind, **table})
    if as_json:
        print_json(plugged)
    else:
        at = plugged.get("bus") or plugged.get("controller")
        talk.say(f"{machine}: {plugged['id']} is plugged in{f' at {at}' if at else ''}")
    return Exit.OK


def _make_absolute(value: Any) -> None:
    """Have all paths in it mean to the daemon what they mean here."""
    if isinstance(value, dict):
        for key in _PATHS:
            if isinstance(value.get(key), str):
                value[key] = str(Path(value[key]).absolute())
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _make_absolute(inner)


def remove_device(
    name: str, device: str, grace: int | None, farm: str | None, *, unmounted: bool
) -> int:
    """`device remove`."""
    daemon, machine = machine_of(name, farm)
    query: dict[str, str | int] = {} if grace is None else {"grace": grace}
    query |= {"unmounted": 1} if unmounted else {}
    steps = ("machines", machine, "devices", device)
    daemon.raw("DELETE", *steps, query=query, timeout=(grace or 0) + _PATIENCE)
    talk.say(f"{machine}: {device} is unplugged")
    return Exit.OK


def set_link(name: str, nic: str, farm: str | None, *, up: bool) -> int:
    """`device link`."""
    daemon, machine = machine_of(name, farm)
    daemon.post("machines", machine, "devices", nic, "link", body={"up": up})
    talk.say(f"{machine}: the cable of {nic} is {'in' if up else 'out'}")
    return Exit.OK
