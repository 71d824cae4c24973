"""How a machine is reached by ssh, from what the daemon tells of it.  Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from qmpkit.process.known_hosts import alias_of

__all__ = ["Reach", "config_of", "inventory_of", "reach_of", "ssh_word", "why_unreached"]

_SSH = 22
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=-]+", re.ASCII)
_COMMON = ("HostKeyAlias", "UserKnownHostsFile", "StrictHostKeyChecking")
_EXPANDED = ("HostName", "UserKnownHostsFile")  # options in which a % has a meaning


@attrs.frozen
class Reach:
    """Where a machine's ssh server is, and as whom one logs in (None: as oneself)."""

    name: str
    host: str
    port: int
    user: str | None

    @property
    def alias(self) -> str:
        """See `alias_of`."""
        return alias_of(self.name)

    def options(self, known_hosts: str) -> dict[str, str]:
        """ssh's options, quoted: the machine's key is remembered by its name, not by its port."""
        user = {} if self.user is None else {"User": self.user}
        plain = {
            "HostName": self.host,
            "Port": str(self.port),
            **user,
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": known_hosts,
            "StrictHostKeyChecking": "accept-new",
        }
        return {
            key: ssh_word(value.replace("%", "%%") if key in _EXPANDED else value)
            for key, value in plain.items()
        }


def reach_of(machine: Mapping[str, Any], user: str | None = None) -> Reach | None:
    """By a forward of port 22, else by a fixed address on a bridge; None: by neither."""
    name = machine["name"]
    who = user or next(iter(machine["users"]), None)
    for forward in machine["forwards"]:
        if forward["proto"] == "tcp" and forward["guest_port"] == _SSH:
            address = forward["address"]
            host = "127.0.0.1" if address == "0.0.0.0" else address
            return Reach(name, host, forward["port"], who)
    taps = {nic["id"] for nic in machine["spec"]["nics"] if nic["kind"] == "tap"}
    for network in machine["networks"]:
        if network["nic"] in taps and network["ip"]:
            return Reach(name, network["ip"], _SSH, who)
    return None


def why_unreached(machine: Mapping[str, Any]) -> str:
    """What is said of a machine that has no `reach_of`."""
    name = machine["name"]
    forwards = [it for nic in machine["spec"]["nics"] for it in nic.get("forwards", ())]
    if not any(it["guest"] == _SSH and it.get("proto", "tcp") == "tcp" for it in forwards):
        cure = 'ports = ["0:22"] in its table, with a network of kind "nat"'
        return f"no way leads to port 22 of machine {name!r}. Cure: {cure}"
    if machine["pid"] is not None:
        return f"the QEMU of machine {name!r} does not tell which port leads to its 22; ask again"
    cure = f"`qmpkit start {shlex.quote(name)}`"
    return f"machine {name!r} is not up, and its ports lead nowhere. Cure: {cure}"


def ssh_word(value: str) -> str:
    """A value as OpenSSH's configuration wants it: in quotes where it has more than plain signs."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def config_of(reaches: Iterable[Reach], known_hosts: str) -> str:
    """A fragment for ~/.ssh/config."""
    blocks = []
    for reach in reaches:
        lines = [f"    {key} {value}" for key, value in reach.options(known_hosts).items()]
        blocks.append("\n".join([*_head(reach), *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _head(reach: Reach) -> list[str]:
    """The names that it is called by; ssh takes *, ? and ! for those of many hosts."""
    if reach.alias == reach.name:
        return [f"Host {reach.name}"]
    pattern = any(char in reach.name for char in "*?!")
    names = reach.alias if pattern else f"{reach.alias} {ssh_word(reach.name)}"
    return [f"# {reach.name}", f"Host {names}"]


def inventory_of(
    machines: Iterable[Mapping[str, Any]], known_hosts: str
) -> dict[str, dict[str, Any]]:
    """An Ansible inventory as its scripts give it: a group for each table of the farm.

    A host that has no variables Ansible would look for by its name on the network, and perhaps find
    another: who has no `reach_of` is in none.  A group of which nobody is left is a group still.
    """
    variables: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for machine in machines:
        hosts = groups.setdefault(machine["group"] or "ungrouped", {"hosts": []})["hosts"]
        if (reach := reach_of(machine)) is None:
            continue
        hosts.append(machine["name"])
        user = {} if reach.user is None else {"ansible_user": reach.user}
        options = reach.options(known_hosts)
        words = [f"-o{key}={options[key]}" for key in _COMMON]
        variables[machine["name"]] = {
            "ansible_host": reach.host,
            "ansible_port": reach.port,
            **user,
            "ansible_ssh_common_args": _untemplated(shlex.join(words)),
        }
    return {**groups, "_meta": {"hostvars": variables}}  # also for a table that is called so


def _untemplated(text: str) -> str:
    """*text* that Ansible's templates leave as it is."""
    return f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text
