"""Bad farm files: every fault at once, at its place, in words for its author."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.farm_data import farm_from_dict, farm_to_dict
from qmpkit.spec.farm_group import Group
from qmpkit.spec.farm_load import load_farm
from qmpkit.spec.farm_seed import SeedTable
from qmpkit.spec.machine import MachineSpec
from tests.unit.spec.bad_farms import MACHINES
from tests.unit.spec.bad_farms_around import AROUND


def faults(path: Path) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        load_farm(path)
    assert caught.value.source == str(path)
    return [str(fault) for fault in caught.value.faults]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


BAD = {**MACHINES, **AROUND}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file(tmp_path: Path, case: str) -> None:
    text, expected = BAD[case]
    path = write(tmp_path / "farm.toml", f"schema = 1\n{text}")
    assert faults(path) == [line.replace("/F/", f"{tmp_path}/") for line in expected]


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "schema: is missing (schema = 1)"),
        ("schema = 2\nx = 1", "schema: 2 is newer than the 1 this qmpkit reads (update qmpkit)"),
        ("schema = '1'", "schema: must be a number from 1, not a text"),
        ("schema = true", "schema: must be a number from 1, not true or false"),
    ],
)
def test_schemas(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(write(tmp_path / "farm.toml", text)) == [fault]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert faults(tmp_path / "farm.toml") == ["cannot be read: No such file or directory"]
    assert faults(tmp_path) == ["cannot be read: Is a directory"]
    (tmp_path / "a.toml").write_bytes(b"schema = 1 # \xff")
    assert faults(tmp_path / "a.toml")[0].startswith("this is not UTF-8: ")
    (tmp_path / "big.toml").write_bytes(b"#" * (2 << 20))
    assert faults(tmp_path / "big.toml") == ["is larger than 1 MiB"]


def test_a_profile_that_is_a_pipe_or_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = 'schema = 1\nextends = "./pipe"\n'
    write(tmp_path / "over.toml", pipe)
    for name, fault in (
        ("./pipe", f"{tmp_path}/pipe: is a pipe, not a file"),
        ("./over.toml", f"extends: {tmp_path}/pipe is a pipe, not a file"),
        ("/dev/zero", "/dev/zero: is larger than 1 MiB"),
    ):
        path = write(tmp_path / "farm.toml", f'schema = 1\n[machines.a]\nprofile = "{name}"\n')
        assert fault in faults(path)[0]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b'\xef\xbb\xbfschema = 1\r\nmachine = "q35"\r\n')
    (tmp_path / "data").write_bytes(b"\xef\xbb\xbf#cloud-config\n")
    (tmp_path / "farm.toml").write_bytes(
        b'\xef\xbb\xbfschema = 1\r\n[machines.a]\r\nprofile = "./own.toml"\r\n'
        b'[machines.a.cloud_init]\r\nuser_data_file = "data"\r\n'
    )
    (machine,) = load_farm(tmp_path / "farm.toml").machines
    assert machine.seed is not None and machine.seed.user_data == "#cloud-config\n"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = write(
        tmp_path / "farm.toml",
        'schema = 1\ninclude = ["pipe"]\n[machines.a.cloud_init]\nuser_data_file = "pipe"\n',
    )
    assert faults(path) == [
        f"include[0]: {tmp_path}/pipe: is a pipe, not a file",
        "machines.a.cloud_init.user_data_file: 'pipe': is a pipe, not a file",
    ]


def test_a_symlink_is_the_file_it_leads_to(tmp_path: Path) -> None:
    path = write(tmp_path / "farm.toml", 'schema = 1\ninclude = ["again.toml"]\n')
    (tmp_path / "again.toml").symlink_to("farm.toml")
    assert faults(path) == ["include[0]: 'again.toml' includes itself"]


def test_faults_of_included_files_name_them(tmp_path: Path) -> None:
    top = write(
        tmp_path / "farm.toml",
        'schema = 1\ninclude = ["parts/db.toml", "parts/old.toml"]\n[machines.web]\ncpu = 0\n',
    )
    db = write(
        tmp_path / "parts/db.toml",
        'schema = 1\ninclude = ["../farm.toml", "no.toml"]\n[defaults]\nagent = 1\n'
        '[machines.db]\naccel = "kvn"\n[machines.web]\n[netwroks]\n',
    )
    old = write(tmp_path / "parts/old.toml", "schema = 9\nmachine = 1\n")
    assert faults(top) == [
        f"{db}: netwroks: unknown key (did you mean 'networks'?)",
        f"{db}: include[0]: '../farm.toml' includes itself",
        f"{db}: include[1]: {tmp_path}/parts/no.toml: cannot be read: No such file or directory",
        f"{old}: schema: 9 is newer than the 1 this qmpkit reads (update qmpkit)",
        f"machines.web: is already in {db}",
        f"{db}: machines.db.accel: must be one of 'auto', 'kvm', 'tcg', not 'kvn'"
        " (did you mean 'kvm'?)",
        f"{db}: defaults.agent: must be true or false, not a number: 1",
    ]


def test_faults_of_a_profile_name_it_once(tmp_path: Path) -> None:
    lab = write(
        tmp_path / "lab.toml",
        'schema = 1\nextends = "q35"\ncpu = 0\n[[nics]]\nkind = "user"\n'
        'mac = "52:54:00:00:00:01"\n',
    )
    top = write(
        tmp_path / "farm.toml",
        'schema = 1\ndefaults.profile = "lab.toml"\n[machines.a]\n[machines.b]\n',
    )
    source = f"{lab} (extends {Path(lab).parents[0]}/q35)"
    found = faults(top)
    assert len(found) == 1
    assert found[0].endswith(": cpu.cpus: a machine has at least one processor, not 0")
    assert found[0].startswith(source.partition(" (")[0])
    write(lab, lab.read_text().replace("cpu = 0\n", ""))
    (shared,) = faults(top)
    assert shared.startswith(f"{lab} (extends ")
    assert shared.endswith(
        "nics[0].mac: MAC 52:54:00:00:00:01 is of both 'a' and 'b' (put {n} into it)"
    )


KEYS = [field.name for kind in (Group, MachineSpec, SeedTable) for field in attrs.fields(kind)]
keys = st.sampled_from([*KEYS, "kind", "file", "format", "make", "path", "profile", "x", "{", ""])
junk: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "{n}", "${a}", "../a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(keys, junk, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    machines=st.dictionaries(st.sampled_from(["a", "b", "../c"]), tables | junk, max_size=3),
    networks=st.dictionaries(st.sampled_from(["lan", ".."]), tables | junk, max_size=2),
    defaults=tables | junk,
    variables=st.dictionaries(st.sampled_from("ab"), junk, max_size=2),
)
def test_junk_is_refused_or_taken_and_never_a_bug(
    tmp_path_factory: pytest.TempPathFactory, **data: Any
) -> None:
    path = tmp_path_factory.mktemp("farm", numbered=True) / "farm.toml"
    path.write_text(tomli_w.dumps({"schema": 1, **data}), encoding="utf-8")
    try:
        farm = load_farm(path)
    except SpecInvalid as error:
        assert error.faults
    else:
        assert farm_from_dict(farm_to_dict(farm)).tables == farm.tables


@pytest.mark.parametrize("text", ['extends = "q35"', 'name = "web"\nmemory = "1GiB"'])
def test_a_profile_is_told_from_a_farms_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "web.toml", f"schema = 1\n{text}\n")
    assert faults(path) == [
        'this is a profile, not a farm\'s file ([machines.NAME] with profile = "./web.toml" in one)'
    ]
