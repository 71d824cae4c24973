"""Every name qmpkit gives inside QEMU, and the rules for those the user gives.

QEMU has one namespace for devices, one for block nodes, one for chardevs, one
for netdevs and one for jobs. Names made by qmpkit carry the prefix `qk-`, except
device ids, which the guest's administrator and the user see: those are the
spec's own (`disk0`, `nic0`, `serial0`).
"""

from __future__ import annotations

import hashlib
import re

__all__ = [
    "DEVICE_ID_LIMIT",
    "MACHINE_NAME_LIMIT",
    "NODE_NAME_LIMIT",
    "RAM_ID",
    "chardev_id",
    "file_node",
    "flash_node",
    "format_node",
    "id_problem",
    "ifname_problem",
    "iothread_id",
    "job_id",
    "mac_of",
    "machine_name_problem",
    "module_id",
    "netdev_id",
    "network_name_problem",
    "node_problem",
    "ram_id",
    "secret_id",
    "tap_name",
]

NODE_NAME_LIMIT = 31
"""QEMU keeps node names in 32 bytes."""

DEVICE_ID_LIMIT = 20
"""Leaves room in a node name for `qk-` and a layer's suffix (`-file`, `-12`)."""

MACHINE_NAME_LIMIT = 64
"""In bytes: the name is a directory in the path of a socket, which fits 107 bytes."""

NETWORK_NAME_LIMIT = 31
"""In characters, all ASCII: a network's name is part of a socket's path too."""

IFNAME_LIMIT = 15
"""The kernel keeps the names of network devices in 16 bytes."""

RAM_ID = "ram0"
"""The memory backend. States saved by every version of qmpkit depend on this name."""


def ram_id(node: int) -> str:
    """The memory backend of the guest's NUMA node of that number."""
    return f"ram{node}"


def module_id(device: str) -> str:
    """The memory backend behind a device that is plugged beside the RAM."""
    return f"qk-{device}"


_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def id_problem(name: str, limit: int = DEVICE_ID_LIMIT) -> str:
    """What is wrong with a device, serial or iothread id; empty when it is fine."""
    if not _ID.fullmatch(name):
        return f"{name!r} is not a name QEMU takes: a letter, then letters, digits, '-', '.', '_'"
    if len(name) > limit:
        return f"{name!r} is longer than {limit} characters"
    if name.startswith("qk-"):
        return f"{name!r}: the prefix 'qk-' is kept for qmpkit's own names"
    return ""


def node_problem(name: str) -> str:
    """What is wrong with a block node name given by the user; empty when it is fine."""
    if not _ID.fullmatch(name):
        return f"{name!r} is not a name QEMU takes: a letter, then letters, digits, '-', '.', '_'"
    if len(name) > NODE_NAME_LIMIT:
        return f"{name!r} is longer than the {NODE_NAME_LIMIT} characters of a node name"
    return ""


def machine_name_problem(name: str) -> str:
    """What is wrong with a machine's name; empty when it is fine.

    Commas, quotes and spaces are allowed. The name is also a directory and a
    line of a table, so a slash and control characters (a newline) are not.
    """
    if not name:
        return "a machine needs a name"
    if not name.isprintable():
        return f"{name!r} holds a character that cannot be printed on one line"
    if "/" in name:
        return f"{name!r} holds a '/'"
    if name[0] in ".-" or name != name.strip():
        return f"{name!r} may not begin with '.', '-' or a space, nor end with a space"
    if len(name.encode()) > MACHINE_NAME_LIMIT:
        return f"{name!r} is longer than {MACHINE_NAME_LIMIT} bytes"
    return ""


def network_name_problem(name: str) -> str:
    """What is wrong with a network's name, a part of paths; empty when it is fine."""
    if not _NETWORK.fullmatch(name):
        rule = "a letter or digit, then letters, digits, '-', '.', '_'"
        return f"{name!r} is not a network's name: {rule}"
    if len(name) > NETWORK_NAME_LIMIT:
        return f"{name!r} is longer than {NETWORK_NAME_LIMIT} characters"
    return ""


def ifname_problem(name: str) -> str:
    """What is wrong with the name of a network device of the host; empty when it is fine."""
    bad = re.search(r"[/\s%]", name) or name in ("", ".", "..")
    if bad or len(name.encode()) > IFNAME_LIMIT:
        return f"{name!r} is not the name of a network device"
    return ""


def tap_name(owner: str, machine: str, network: str) -> str:
    """The tap device by which a machine of *owner* is on a bridge: the same names, the same one."""
    digest = hashlib.sha256(f"{owner}\0{machine}\0{network}".encode()).hexdigest()
    return f"qk{digest[:12]}"


def format_node(disk_id: str) -> str:
    """The node a disk's device is attached to."""
    return f"qk-{disk_id}"


def file_node(disk_id: str) -> str:
    """The protocol node below `format_node`."""
    return f"qk-{disk_id}-file"


def flash_node(number: int) -> str:
    """The node of a flash chip: 0 holds UEFI's code, 1 its variables."""
    return f"qk-pflash{number}"


def chardev_id(channel: str) -> str:
    """The chardev behind a channel ("qmp", "serial0", "agent")."""
    return f"qk-{channel}"


def netdev_id(nic_id: str) -> str:
    """The host side of a NIC."""
    return f"qk-{nic_id}"


def iothread_id(name: str) -> str:
    """The `-object iothread` behind the name a disk gives in `iothread`."""
    return f"qk-io-{name}"


def secret_id(disk_id: str, number: int) -> str:
    """The `-object secret` of a disk's image (0), or of the *number*th base with one of its own."""
    return f"qk-{disk_id}-key{number}"


def job_id(kind: str, subject: str, serial: int) -> str:
    """A block job's name, e.g. `qk-commit-disk0-3`; `serial` makes it unique in its machine."""
    return f"qk-{kind}-{subject}-{serial}"


def mac_of(machine: str, nic_id: str) -> str:
    """A stable, locally administered MAC: the same machine name and NIC give the same one.

    Four bytes of a hash behind 52:54: with QEMU's usual three, 5000 machines
    would already collide more likely than not.
    """
    digest = hashlib.sha256(f"{machine}\0{nic_id}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *digest[:4]))
