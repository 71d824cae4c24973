"""`qmpkit tune`: where a machine's threads run and what it may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.farm_actions import machine_of
from qmpkit.cli.overrides import parse_value
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import print_json, talk

__all__ = ["change", "changes_of"]

_TEXTS = ("pin", "emulator", "policy")  # also where they look like a number


def change(name: str, words: Sequence[str], farm: str | None, *, as_json: bool) -> int:
    """`tune`."""
    daemon, machine = machine_of(name, farm)
    if words:
        found = daemon.post("machines", machine, "tune", body=changes_of(words))
    else:
        found = daemon.get("machines", machine, "tune")
    if as_json:
        print_json(found)
    elif words:
        _say(machine, found)
    else:
        _show(found)
    return Exit.OK


def changes_of(words: Sequence[str]) -> dict[str, Any]:
    """What a daemon is asked for.  Raises Refusal for a word that is no FIELD=VALUE.  Pure."""
    body: dict[str, Any] = {}
    for word in words:
        field, sign, text = word.partition("=")
        if not sign or not field:
            raise Refusal(f"{word!r} is not FIELD=VALUE, as cpu_max=1.5")
        value = parse_value(text)
        if field in _TEXTS and value is not None and not isinstance(value, list):
            value = text
        if field == "pin":
            body["pin"] = value
        else:
            body.setdefault("resources", {})[field] = value
    return body


def _say(machine: str, found: dict[str, Any]) -> None:
    if found["changed"]:
        talk.say(f"{machine}: {', '.join(found['changed'])} changed")
    elif not found["waits"]:
        talk.say(f"{machine}: it is so already")
    if found["waits"]:
        talk.note(
            f"{', '.join(found['waits'])} of {machine} cannot be changed while it runs: "
            "it was started without a limit. Change its file, then restart it"
        )


def _show(found: dict[str, Any]) -> None:
    pin, resources = found["pin"], found["resources"]
    rows = [("pin", " ".join(pin) if isinstance(pin, list) else pin or "-")]
    rows += [(field, str(value)) for field, value in resources.items() if value not in ({}, [], 0)]
    print_table(("FIELD", "VALUE"), rows, prose=True)
    threads = found["threads"]
    for kind in ("vcpus", "iothreads"):
        tids = [f"{name}: {tid}" for name, tid in threads[kind].items()]
        print_line(f"threads of {kind}: {', '.join(tids) or 'none'}")
    for kind, pressure in found["pressure"].items():
        ten, sixty, most = pressure["some"]
        print_line(f"waited for {kind}: {ten} % of 10 s, {sixty} % of 60 s, {most} % of 300 s")
