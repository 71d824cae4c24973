"""cloud-init's seed: what is in it, read back from the ISO; what it refuses."""

from __future__ import annotations

import base64
import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from qmpkit.errors import HostLacks, ImageFailed, SpecInvalid
from qmpkit.images.seed import CloudInit, make_seed, seed_files

_DATA = b"\0\0\0\x0bssh-ed25519" + b"\0\0\0\x20" + bytes(32)
KEY = f"ssh-ed25519 {base64.b64encode(_DATA).decode()} ada@example"


def config(init: CloudInit) -> dict[str, Any]:
    """The generated cloud-config."""
    text = seed_files(init)["user-data"].decode()
    head, _, body = text.partition("\n")
    assert head == "#cloud-config"
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def meta(init: CloudInit) -> dict[str, Any]:
    found = json.loads(seed_files(init)["meta-data"])
    assert isinstance(found, dict)
    return found


def faults(init: CloudInit) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        seed_files(init)
    return [fault.path for fault in caught.value.faults]


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def read_iso(path: Path, kind: str) -> dict[str, bytes]:
    """The files of the ISO by their names in Rock Ridge ("rr") or Joliet."""
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        found = {}
        for child in iso.list_children(**{f"{kind}_path": "/"}):
            if child.is_file():
                name = _name(child, kind)
                data = io.BytesIO()
                iso.get_file_from_iso_fp(data, **{f"{kind}_path": f"/{name}"})
                found[name] = data.getvalue()
        return found
    finally:
        iso.close()


def _name(child: Any, kind: str) -> str:
    if kind == "rr":
        return str(child.rock_ridge.name().decode())
    return str(child.file_identifier().decode("utf-16-be"))


async def test_the_iso_holds_the_files_under_both_names(tmp_path: Path) -> None:
    init = CloudInit(hostname="ada", user="ada", ssh_keys=(KEY,), network_config={"version": 2})
    path = await make_seed(tmp_path / "seed.iso", init)
    assert path == tmp_path / "seed.iso"
    expected = seed_files(init)
    assert sorted(expected) == ["meta-data", "network-config", "user-data"]
    assert read_iso(path, "rr") == read_iso(path, "joliet") == expected
    # Where Linux's blkid looks for the label.
    assert path.read_bytes()[0x8028:0x8048].rstrip() == b"cidata"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert left(tmp_path) == ["seed.iso"]


async def test_a_file_that_exists_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_text("mine")
    with pytest.raises(ImageFailed, match="exists already"):
        await make_seed(path, CloudInit())
    assert path.read_text() == "mine"
    await make_seed(path, CloudInit(hostname="new"), replace=True)
    assert read_iso(path, "rr") == seed_files(CloudInit(hostname="new"))
    assert left(tmp_path) == ["seed.iso"]


@pytest.mark.parametrize("replace", [False, True])
async def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, replace: bool) -> None:
    folder = tmp_path / "seed.iso"
    folder.mkdir()
    with pytest.raises(ImageFailed):
        await make_seed(folder, CloudInit(), replace=replace)
    with pytest.raises(ImageFailed, match=r"no directory|No such file"):
        await make_seed(tmp_path / "absent" / "seed.iso", CloudInit(), replace=replace)
    assert left(tmp_path) == ["seed.iso"]


async def test_without_pycdlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycdlib", None)
    with pytest.raises(HostLacks, match=r"qmpkit\[cli\]"):
        await make_seed(tmp_path / "seed.iso", CloudInit())
    assert left(tmp_path) == []


async def test_a_long_name_and_a_strange_one(tmp_path: Path) -> None:
    for name in ("n" * 255, "-o, a=b: c", "ünï"):
        path = await make_seed(tmp_path / name, CloudInit(hostname="x"))
        assert read_iso(path, "rr") == seed_files(CloudInit(hostname="x"))


def test_the_user_has_the_keys_and_no_password() -> None:
    (user,) = config(CloudInit(user="ada", ssh_keys=[KEY, f"  {KEY}\n"]))["users"]
    assert user["name"] == "ada"
    assert user["lock_passwd"] is True
    assert user["shell"] == "/bin/bash"
    assert "NOPASSWD" in user["sudo"]
    assert user["ssh_authorized_keys"] == [KEY, KEY]


def test_keys_without_a_user_are_for_the_images_own() -> None:
    init = CloudInit(ssh_keys=(KEY,))
    assert meta(init)["public-keys"] == [KEY]
    assert config(init) == {}


def test_the_host_name_is_in_meta_data_and_resolves() -> None:
    init = CloudInit(hostname="ada.example.org")
    assert meta(init)["local-hostname"] == "ada.example.org"
    assert config(init) == {"manage_etc_hosts": "localhost"}


def test_user_data_as_a_dict_wins_over_what_is_generated() -> None:
    more = {"packages": ["jq"], "manage_etc_hosts": False}
    found = config(CloudInit(hostname="h", user="u", user_data=more))
    assert found["packages"] == ["jq"]
    assert found["manage_etc_hosts"] is False
    assert found["users"][0]["name"] == "u"


def test_user_data_as_text_is_taken_as_it_is() -> None:
    init = CloudInit(hostname="h", ssh_keys=(KEY,), user_data="#!/bin/sh\necho hä\n")
    assert seed_files(init)["user-data"] == "#!/bin/sh\necho hä\n".encode()
    assert meta(init)["local-hostname"] == "h"
    assert meta(init)["public-keys"] == [KEY]


def test_a_changed_seed_is_another_instance() -> None:
    different = [
        CloudInit(),
        CloudInit(hostname="a"),
        CloudInit(user="a"),
        CloudInit(user="a", ssh_keys=(KEY,)),
        CloudInit(network_config={"version": 2}),
        CloudInit(meta_data={"more": 1}),
        CloudInit(user_data={"packages": ["a"]}),
    ]
    ids = {meta(init)["instance-id"] for init in different}
    assert len(ids) == len(different)
    assert meta(CloudInit(hostname="a"))["instance-id"] in ids
    given = CloudInit(meta_data={"instance-id": "mine", "local-hostname": "b"}, hostname="a")
    assert meta(given) == {"instance-id": "mine", "local-hostname": "b"}


@pytest.mark.parametrize("name", ["a", "a-b", "A1", "web.example.org", "x" * 63])
def test_host_names(name: str) -> None:
    assert meta(CloudInit(hostname=name))["local-hostname"] == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a_b", "a b", "a..b", ".a", "ä", "a\n", "x" * 64, "a." * 32 + "a"]
)
def test_no_host_names(name: str) -> None:
    assert faults(CloudInit(hostname=name)) == ["hostname"]


@pytest.mark.parametrize("name", ["", "root", "Ada", "a b", "-a", "1a", "a:b", "a\n", "x" * 33])
def test_no_user_names(name: str) -> None:
    assert faults(CloudInit(user=name)) == ["user"]


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        KEY.rsplit(" ", 1)[0],
        f'from="10.0.0.0/8",no-pty {KEY}',
        f"{KEY} with more words",
    ],
)
def test_keys(key: str) -> None:
    assert config(CloudInit(user="u", ssh_keys=[key]))["users"][0]["ssh_authorized_keys"] == [key]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "not a public key"),
        ("ssh-ed25519", "not a public key"),
        ("ssh-ed25519 AAAA", "damaged"),
        ("ssh-ed25519 AAAAA", "damaged"),
        (KEY.replace("ssh-ed25519", "ssh-rsa"), "damaged"),
        (f"{KEY}\n{KEY}", "more than one line"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "private key"),
    ],
)
def test_no_keys(key: str, why: str) -> None:
    with pytest.raises(SpecInvalid, match=why) as caught:
        seed_files(CloudInit(user="u", ssh_keys=[key]))
    assert "c2VjcmV0" not in str(caught.value)


def test_a_single_key_is_not_a_list_of_letters() -> None:
    with pytest.raises(SpecInvalid, match="must be a list") as caught:
        CloudInit(ssh_keys=KEY)
    assert KEY not in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    init = CloudInit(
        hostname="-",
        user="Root",
        ssh_keys=(KEY, "x"),
        user_data={"a": object()},
        meta_data="text",  # type: ignore[arg-type]
        network_config="",
    )
    expected = ["hostname", "user", "ssh_keys[1]", "user_data", "meta_data", "network_config"]
    assert faults(init) == expected


def test_a_user_and_user_data_that_leaves_no_room_for_one() -> None:
    assert faults(CloudInit(user="u", user_data="#!/bin/sh\n")) == ["user_data"]
    assert faults(CloudInit(user="u", user_data={"users": []})) == ["user_data.users"]
    assert config(CloudInit(user_data={"users": []})) == {"users": []}
