"""What `qmpkit cpu` and `qmpkit memory` do: they ask the farm's daemon."""

from __future__ import annotations

from typing import Any

from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import machine_of
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.spec.sizes import format_size

__all__ = ["add_cpus", "add_memory", "list_cpus", "list_memory", "remove", "resize", "set_balloon"]

_PATIENCE = 60.0  # seconds of silence, beside the guest's own


def list_cpus(name: str, farm: str | None, *, as_json: bool) -> int:
    """`cpu list`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.get("machines", machine, "cpus")
    if as_json:
        print_json(found)
        return Exit.OK
    rows = [
        (
            str(it["number"]),
            it["id"] or ("(of the start)" if it["number"] < found["of_the_start"] else "-"),
            *(str(it[name]) for name in ("socket", "core", "thread_in_core")),
            "-" if it["thread"] is None else str(it["thread"]),
        )
        for it in found["cpus"]
    ]
    print_table(("NUMBER", "ID", "SOCKET", "CORE", "THREAD", "TID"), rows, prose=True)
    return Exit.OK


def add_cpus(name: str, asked: dict[str, Any], farm: str | None, *, as_json: bool) -> int:
    """`cpu add`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.post("machines", machine, "cpus", body=asked)
    if as_json:
        print_json(found)
    else:
        added = ", ".join(it["id"] for it in found["cpus"])
        how = "plugged in and online" if asked.get("online") else "plugged in"
        talk.say(f"{machine}: {added} {how}")
    return Exit.OK


def list_memory(name: str, farm: str | None, *, as_json: bool) -> int:
    """`memory list`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.get("machines", machine, "memory")
    if as_json:
        print_json(found)
        return Exit.OK
    rows = [("(of the start)", format_size(found["size"]))]
    rows += [(it["id"], format_size(it["size"])) for it in found["dimms"]]
    print_table(("ID", "SIZE"), rows, prose=True)
    if found["balloon"] is not None:
        talk.note(f"the balloon leaves {format_size(found['balloon'])} to the guest")
    left = found["slots"] - len(found["dimms"])
    talk.note("1 slot is left" if left == 1 else f"{left} slots are left")
    return Exit.OK


def add_memory(name: str, size: str, node: int | None, farm: str | None, *, as_json: bool) -> int:
    """`memory add`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.post("machines", machine, "memory", body={"size": size, "node": node})
    if as_json:
        print_json(found)
    else:
        talk.say(f"{machine}: {found['id']} of {format_size(found['size'])} is plugged in")
    return Exit.OK


def set_balloon(name: str, size: str, grace: int | None, farm: str | None, *, as_json: bool) -> int:
    """`memory balloon`."""
    daemon, machine = machine_of(name, farm)
    body = {"size": size, "grace": grace}
    timeout = (grace or 0) + _PATIENCE
    found = daemon.post("machines", machine, "memory", "balloon", body=body, timeout=timeout)
    if as_json:
        print_json(found)
    else:
        talk.say(f"{machine}: its guest has {format_size(found['balloon'])} of memory")
    return Exit.OK


def resize(
    name: str,
    size: str,
    device: str | None,
    grace: int | None,
    farm: str | None,
    *,
    as_json: bool,
) -> int:
    """`memory resize`."""
    daemon, machine = machine_of(name, farm)
    body = {"size": size, "device": device, "grace": grace}
    timeout = (grace or 0) + 2 * _PATIENCE
    found = daemon.post("machines", machine, "memory", "resize", body=body, timeout=timeout)
    if as_json:
        print_json(found)
    else:
        used, whole = format_size(found["requested"]), format_size(found["size"])
        talk.say(f"{machine}: its guest uses {used} of the {whole} of {found['id']}")
    return Exit.OK


def remove(
    kind: str, name: str, ident: str, grace: int | None, farm: str | None, *, unsafe: bool = False
) -> int:
    """`cpu remove` and `memory remove`; *kind*: their part of the API."""
    daemon, machine = machine_of(name, farm)
    query: dict[str, str | int] = {} if grace is None else {"grace": grace}
    query |= {"unsafe": 1} if unsafe else {}
    steps = ("machines", machine, kind, ident)
    daemon.raw("DELETE", *steps, query=query, timeout=(grace or 0) + 2 * _PATIENCE)
    talk.say(f"{machine}: {ident} is unplugged")
    return Exit.OK
