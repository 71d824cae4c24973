"""What cloud-init is told at a guest's first boot, and the files that say it: pure.

`images.seed` writes them to an ISO.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.given import items_of

__all__ = ["CloudInit", "host_name", "seed_faults", "seed_files", "user_entry"]

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_LIMIT = 63
_HOSTNAME_LIMIT = 64  # the kernel's
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_KEY = re.compile(r"(?:^|\s)((?:ssh|ecdsa|sk)-[A-Za-z0-9@.-]+)\s+([A-Za-z0-9+/]+=*)(?:\s|$)")

_KEY_HINT = 'a line of a .pub file: "ssh-ed25519 AAAA… name"'


def _keys(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):  # not shown: it may be a private key
        raise SpecInvalid([Fault("ssh_keys", "must be a list of keys, not one text", _KEY_HINT)])
    return tuple(key.strip() for key in items_of(value, "ssh_keys", _KEY_HINT, (str,)))


@attrs.frozen(kw_only=True)
class CloudInit:
    """What cloud-init does when the guest first boots with this seed.

    `hostname`: with or without a domain.  `user`: made with bash, sudo without a
    password, and no password of its own.  `ssh_keys`: public keys that may log in as
    `user`, without one as the image's own default user.  `user_data`: further
    cloud-config as a dict, whose keys win over those made here, or a whole user-data
    as text ("#cloud-config", "#!/bin/sh" …), which leaves no room for `user`.
    `meta_data`: further keys, which win too.  `network_config`: netplan's format (or
    cloud-init's version 1), None: DHCP as the image does it.

    A guest applies a seed once.  The instance id is a digest of the content, so a
    changed seed is applied at the next boot.
    """

    hostname: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = attrs.field(default=(), converter=_keys)
    user_data: str | Mapping[str, object] | None = None
    meta_data: Mapping[str, object] | None = None
    network_config: str | Mapping[str, object] | None = None


def host_name(machine: str) -> str:
    """A machine's name as a host name: letters, digits and hyphens."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", machine, flags=re.ASCII)[:_LABEL_LIMIT].strip("-")
    return plain or "vm"


def seed_files(init: CloudInit) -> dict[str, bytes]:
    """The files of the seed by name; pure.  Raises SpecInvalid."""
    if faults := list(seed_faults(init)):
        raise SpecInvalid(faults, "cloud-init")
    user_data = _user_data(init)
    files = {"user-data": user_data}
    if init.network_config is not None:
        files["network-config"] = _text(init.network_config)
    meta = _meta_data(init)
    if "instance-id" not in meta:
        content = b"\0".join([*files.values(), _text(meta)])
        meta = {"instance-id": f"iid-{hashlib.sha256(content).hexdigest()[:16]}", **meta}
    return {**files, "meta-data": _text(meta)}


def _user_data(init: CloudInit) -> bytes:
    if isinstance(init.user_data, str):
        return init.user_data.encode()
    config: dict[str, object] = {}
    if init.hostname is not None:
        # Else sudo complains that it cannot resolve the name.
        config["manage_etc_hosts"] = "localhost"
    if init.user is not None:
        config["users"] = [user_entry(init.user, init.ssh_keys)]
    return b"#cloud-config\n" + _text({**config, **(init.user_data or {})})


def user_entry(name: str, keys: Iterable[str]) -> dict[str, object]:
    """A user in cloud-config's words: bash, sudo, no password, and *keys* that may log in."""
    user: dict[str, object] = {
        "name": name,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
    }
    listed = list(keys)
    return {**user, "ssh_authorized_keys": listed} if listed else user


def _meta_data(init: CloudInit) -> dict[str, object]:
    meta: dict[str, object] = {}
    if init.hostname is not None:
        meta["local-hostname"] = init.hostname
    if init.ssh_keys and init.user is None:
        meta["public-keys"] = list(init.ssh_keys)
    return {**meta, **(init.meta_data or {})}


def _text(value: str | Mapping[str, object]) -> bytes:
    """JSON, which is YAML too; text as it is."""
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def seed_faults(init: CloudInit) -> Iterator[Fault]:
    """Everything that cloud-init would not take, or that contradicts itself."""
    if init.hostname is not None and (problem := _hostname_problem(init.hostname)):
        yield Fault("hostname", problem)
    if init.user is not None:
        yield from _user_faults(init, init.user)
    for number, key in enumerate(init.ssh_keys):
        if problem := _key_problem(key):
            yield Fault(f"ssh_keys[{number}]", problem, _KEY_HINT)
    for name in ("user_data", "meta_data", "network_config"):
        value = getattr(init, name)
        if value is not None and (problem := _data_problem(value, text=name != "meta_data")):
            yield Fault(name, problem)


def _hostname_problem(name: str) -> str:
    if len(name) > _HOSTNAME_LIMIT:
        return f"{name!r} is longer than {_HOSTNAME_LIMIT} characters"
    if not all(_LABEL.fullmatch(label) for label in name.split(".")):
        return f"{name!r} is not a host name: letters, digits and '-', in parts joined by '.'"
    return ""


def _user_faults(init: CloudInit, user: str) -> Iterator[Fault]:
    if user == "root":
        hint = "name another user, who can use sudo"
        yield Fault("user", "cloud-init does not let root log in", hint)
    elif not _USER.fullmatch(user):
        rule = "up to 32 lower-case letters, digits, '_' and '-', a letter or '_' first"
        yield Fault("user", f"{user!r} is not a user name: {rule}")
    if isinstance(init.user_data, str):
        hint = "give user_data as a dict, or write the user into the text"
        yield Fault("user_data", "a text leaves no room for user", hint)
    elif init.user_data is not None and "users" in init.user_data:
        yield Fault("user_data.users", "would replace user", "give one of them")


def _key_problem(key: str) -> str:
    # Never shows the key: it may be the private one.
    if "PRIVATE KEY" in key:
        return "is a private key"
    if "\n" in key:
        return "is more than one line"
    match = _KEY.search(key)
    if match is None:
        return "is not a public key of OpenSSH"
    kind = match[1].encode()
    try:
        content = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        content = b""
    if not content.startswith(len(kind).to_bytes(4, "big") + kind):
        return "is damaged: its data does not begin with its type"
    return ""


def _data_problem(value: object, *, text: bool) -> str:
    if isinstance(value, str) and text:
        return "" if value.strip() else "is empty"
    if not isinstance(value, Mapping):
        return f"is {type(value).__name__}, not a dict{' or text' if text else ''}"
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        return f"cannot be written as JSON: {error}"
    return ""
