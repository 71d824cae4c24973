"""`[machines.NAME.cloud_init]`: what one machine of a farm is told at its first boot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.cloud_init import CloudInit, host_name, seed_faults, user_entry
from qmpkit.spec.convert import kind_of
from qmpkit.spec.farm import Joined
from qmpkit.spec.farm_networks import Bridge, Nat, Segment, subnet_of
from qmpkit.spec.farm_text import fill
from qmpkit.spec.machine import MachineSpec

__all__ = ["SeedFile", "SeedTable", "SeedUser", "seed_of", "seed_table_faults"]

_MODE = re.compile(r"0?[0-7]{3,4}", re.ASCII)


@attrs.frozen(kw_only=True)
class SeedUser:
    """A user with sudo and without a password, and the keys that may log in."""

    name: str
    ssh_keys: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class SeedFile:
    """A file that the guest has after its first boot; `permissions` as of chmod, "0644"."""

    path: str
    content: str
    permissions: str = "0644"
    owner: str | None = None


@attrs.frozen(kw_only=True)
class SeedTable:
    """The table; `CloudInit` says what the fields are that both have.

    `hostname` may hold `{name}` and `{n}`; left out it is the machine's name.  `user` has
    `ssh_keys`; `users` is for more than one.  `write_files`: small texts.  In a file,
    `user_data_file`, `network_config_file` and `ssh_key_files` name files that are read.
    """

    hostname: str | None = None
    user: str | None = None
    users: tuple[SeedUser, ...] = ()
    ssh_keys: tuple[str, ...] = ()
    user_data: Any = None
    meta_data: Any = None
    network_config: Any = None
    write_files: tuple[SeedFile, ...] = ()


def seed_table_faults(table: SeedTable) -> Iterator[Fault]:
    """What is wrong for every machine of the table."""
    if table.user_data is not None and not isinstance(table.user_data, str | Mapping):
        message = f"must be a text or a table, not {kind_of(table.user_data)}"
        yield Fault("user_data", message)
    elif isinstance(table.user_data, Mapping) and "write_files" in table.user_data:
        if table.write_files:
            yield Fault("user_data.write_files", "stands beside write_files", "give one of them")
    elif isinstance(table.user_data, str):
        for key in ("users", "write_files"):
            if getattr(table, key):
                hint = "give user_data as a table, or write it into the text"
                yield Fault(key, "user_data, a text, leaves no room for it", hint)
    if table.users and table.user is not None:
        yield Fault("users", "stands beside user", "give one of them")
    for number, user in enumerate(table.users):
        yield from _user_faults(user, f"users[{number}]")
    for number, file in enumerate(table.write_files):
        yield from _file_faults(file, f"write_files[{number}]")
    sample = CloudInit(
        user=table.user,
        ssh_keys=table.ssh_keys,
        user_data=table.user_data if isinstance(table.user_data, str | Mapping) else None,
        meta_data=table.meta_data,
        network_config=table.network_config,
    )
    yield from seed_faults(sample)


def _user_faults(user: SeedUser, where: str) -> Iterator[Fault]:
    for fault in seed_faults(CloudInit(user=user.name, ssh_keys=user.ssh_keys)):
        key = "name" if fault.path == "user" else fault.path
        yield attrs.evolve(fault, path=f"{where}.{key}")


def _file_faults(file: SeedFile, where: str) -> Iterator[Fault]:
    if not file.path.startswith("/") or ".." in file.path.split("/"):
        yield Fault(f"{where}.path", f"{file.path!r} is not an absolute path", '"/etc/motd"')
    if not _MODE.fullmatch(file.permissions):
        yield Fault(f"{where}.permissions", f"{file.permissions!r} is not a mode", '"0644"')


def seed_of(
    table: SeedTable, name: str, n: int, spec: MachineSpec, joined: Sequence[Joined]
) -> CloudInit:
    """The seed of one machine."""
    hostname = host_name(name)
    if table.hostname is not None:
        hostname = fill(table.hostname, {"name": host_name(name), "n": n})
    config = table.network_config
    if config is None and any(join.ip for join in joined):
        config = _network_config(spec, joined)
    return CloudInit(
        hostname=hostname,
        user=table.user,
        ssh_keys=table.ssh_keys,
        user_data=_user_data(table),
        meta_data=table.meta_data,
        network_config=config,
    )


def _user_data(table: SeedTable) -> Any:
    own: dict[str, object] = {}
    if table.users:
        own["users"] = [user_entry(user.name, user.ssh_keys) for user in table.users]
    if table.write_files:
        own["write_files"] = [
            {key: value for key, value in attrs.asdict(file).items() if value is not None}
            for file in table.write_files
        ]
    return {**own, **(table.user_data or {})} if own else table.user_data


def _network_config(spec: MachineSpec, joined: Sequence[Joined]) -> dict[str, object]:
    """netplan's format: fixed addresses where there are some, DHCP on every other NIC.

    NICs are told apart by MAC, since their names differ from guest to guest.
    """
    fixed = {join.nic: join for join in joined if join.ip is not None}
    way_out = any(isinstance(join.network, Nat) for join in joined)
    ethernets: dict[str, object] = {}
    for nic in spec.nics:
        entry: dict[str, object] = {"match": {"macaddress": nic.mac}}
        if nic.id not in fixed:
            quiet = next((j for j in joined if j.nic == nic.id), None)
            ethernets[nic.id] = {**entry, **_dhcp(quiet)}
            continue
        join = fixed[nic.id]
        subnet = subnet_of(join.network)
        assert subnet is not None
        entry["addresses"] = [f"{join.ip}/{subnet.prefixlen}"]
        if isinstance(join.network, Bridge) and join.network.address and not way_out:
            entry["routes"] = [{"to": "0.0.0.0/0", "via": join.network.address}]
        ethernets[nic.id] = entry
    return {"version": 2, "ethernets": ethernets}


def _dhcp(join: Joined | None) -> dict[str, object]:
    """A segment has nobody who gives addresses; a guest that waits for one boots slowly."""
    if join is not None and isinstance(join.network, Segment):
        return {"link-local": ["ipv6"]}
    return {"dhcp4": True}
