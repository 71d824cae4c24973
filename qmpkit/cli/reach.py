"""How a machine is reached by ssh, from what the daemon tells of it.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

__all__ = ["Reach", "config_of", "inventory_of", "reach_of"]

_SSH = 22


@attrs.frozen
class Reach:
    """Where a machine's ssh server is, and as whom one logs in (None: as oneself)."""

    name: str
    host: str
    port: int
    user: str | None

    def options(self, known_hosts: str) -> dict[str, str]:
        """ssh's options: the machine's key is remembered by its name, not by its port."""
        user = {} if self.user is None else {"User": self.user}
        return {
            "HostName": self.host,
            "Port": str(self.port),
            **user,
            "HostKeyAlias": self.name,
            "UserKnownHostsFile": known_hosts,
            "StrictHostKeyChecking": "accept-new",
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


def config_of(reaches: Iterable[Reach], known_hosts: str) -> str:
    """A fragment for ~/.ssh/config."""
    blocks = []
    for reach in reaches:
        lines = [f"    {key} {_quoted(value)}" for key, value in reach.options(known_hosts).items()]
        blocks.append("\n".join([f"Host {reach.name}", *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value


def inventory_of(
    machines: Iterable[Mapping[str, Any]], known_hosts: str
) -> dict[str, dict[str, Any]]:
    """An Ansible inventory as its scripts give it: a group for each table of the farm."""
    variables: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for machine in machines:
        group = machine["group"] or "ungrouped"
        groups.setdefault(group, {"hosts": []})["hosts"].append(machine["name"])
        if (reach := reach_of(machine)) is None:
            continue
        user = {} if reach.user is None else {"ansible_user": reach.user}
        common = (
            f"-o HostKeyAlias={reach.name} -o UserKnownHostsFile={known_hosts} "
            "-o StrictHostKeyChecking=accept-new"
        )
        variables[machine["name"]] = {
            "ansible_host": reach.host,
            "ansible_port": reach.port,
            **user,
            "ansible_ssh_common_args": common,
        }
    return {"_meta": {"hostvars": variables}, **groups}
