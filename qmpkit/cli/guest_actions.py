"""What the commands about a farm's guests do: logs, events, screenshot, ssh."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmpkit.cli.choosing import matching, only_one
from qmpkit.cli.daemon import Daemon, farm_daemon, find_daemon
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.farm_actions import machine_of, one_machine
from qmpkit.cli.reach import config_of, inventory_of, reach_of, why_unreached
from qmpkit.cli.safe import one_line
from qmpkit.cli.since import since_query
from qmpkit.cli.talk import print_json, talk
from qmpkit.cli.target_file import written
from qmpkit.cli.which_farm import which_farm
from qmpkit.process.known_hosts import known_hosts_in
from qmpkit.process.roots import state_root

__all__ = ["inventory", "show_events", "show_logs", "ssh", "ssh_config"]
__all__ += ["take_screenshot"]

_CHUNK = 65536


def show_logs(
    name: str, farm: str | None, *, log: str | None, tail: int | None, follow: bool
) -> int:
    """`logs`: what a machine's console said, or QEMU itself."""
    daemon, machine = machine_of(name, farm)
    query: dict[str, str | int] = {"follow": int(follow)}
    query |= {} if log is None else {"log": log}
    query |= {} if tail is None else {"tail": tail}
    with daemon.open("GET", "machines", machine, "logs", query=query, timeout=None) as said:
        while chunk := daemon.part_of(said, _CHUNK):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return Exit.OK


def show_events(
    farm: str | None, *, machine: str | None, since: str | None, follow: bool, as_json: bool
) -> int:
    """`events`: what has happened, and with *follow* what happens."""
    asked = since_query(since)
    daemon = farm_daemon(farm)
    query: dict[str, str | int] = {}
    if machine is not None:
        query["machine"] = _happened_to(daemon, machine)
    query |= asked or ({} if follow else {"since": -1})
    for name, data in daemon.events("events", follow=int(follow), **query):
        if name == "lost":
            talk.warn("some events are gone: they are older than what is kept, or came too fast")
        elif name:
            _print_event(data, as_json)
    if follow:
        raise daemon.ended()
    return Exit.OK


def _happened_to(daemon: Daemon, word: str) -> str:
    """The machine that *word* means, also one that is gone and of which the log still tells."""
    known = [machine["name"] for machine in daemon.get("machines")["machines"]]
    if word not in known:
        told = daemon.events("events", follow=0, machine=word, since=-1)
        if any(name not in ("", "lost") for name, _ in told):
            return word
    return only_one(word, known, daemon.farm)


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(event, compact=True)
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    words = f"{event['sequence']:>8} {when} {event['machine']}: {event['state']}"
    print(one_line(f"{words} ({event['cause']})" if event["cause"] else words), flush=True)


def take_screenshot(name: str, farm: str | None, output: Path | None) -> int:
    """`screenshot`: a PNG of the guest's screen."""
    daemon, machine = machine_of(name, farm)
    picture = daemon.raw("GET", "machines", machine, "screenshot")
    target = str(output or f"{machine}.png")
    with written(target, f"{machine}.png") as file:
        file.write(picture)
    talk.say(f"{target}: {len(picture)} bytes")
    return Exit.OK


def ssh(name: str, words: Sequence[str], farm: str | None, user: str | None) -> int:
    """`ssh`: becomes the system's ssh, to the machine."""
    which = which_farm(farm)
    daemon = find_daemon(which)
    machine = daemon.get("machines", one_machine(daemon, name))
    reach = reach_of(machine, user)
    if reach is None:
        raise Refusal(why_unreached(machine))
    options = reach.options(str(known_hosts_in(state_root() / which)))
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    try:
        os.execvp("ssh", ["ssh", *flags, reach.alias, *words])
    except FileNotFoundError:
        raise Refusal("there is no ssh here. Cure: apt install openssh-client") from None


def ssh_config(words: Sequence[str], farm: str | None) -> int:
    """`ssh-config`: a fragment for ~/.ssh/config."""
    which = which_farm(farm)
    reaches = filter(None, map(reach_of, _all(which, words)))
    sys.stdout.write(config_of(reaches, str(known_hosts_in(state_root() / which))))
    return Exit.OK


def _all(farm: str, words: Sequence[str]) -> list[dict[str, Any]]:
    """The machines, and said of each that cannot be reached why it will be left out."""
    daemon = find_daemon(farm)
    known = [machine["name"] for machine in daemon.get("machines")["machines"]]
    names = matching(words, known, farm) if words else known
    machines = [daemon.get("machines", name) for name in names]
    for machine in machines:
        if reach_of(machine) is None:
            talk.note(f"left out: {why_unreached(machine)}")
    return machines


def inventory(farm: str | None, host: str | None) -> int:
    """`inventory`: what Ansible wants to know."""
    which = which_farm(farm)
    found = inventory_of(_all(which, []), str(known_hosts_in(state_root() / which)))
    print_json(found if host is None else found["_meta"]["hostvars"].get(host, {}))
    return Exit.OK
