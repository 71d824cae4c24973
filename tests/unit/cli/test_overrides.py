"""`key=value` words become tables, and every word that cannot is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.cli.overrides import apply_overrides, arguments_from, parse_value
from qmpkit.errors import SpecInvalid


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("1GiB", "1GiB"),
        ("on", "on"),
        ("", ""),
        ("a=b", "a=b"),
        ("{half", "{half"),
    ],
)
def test_a_value_is_json_when_it_can_be(text: str, value: object) -> None:
    assert parse_value(text) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_json_value_can_be_written(value: object) -> None:
    assert parse_value(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["id=disk0"], {"id": "disk0"}),
        (["a.b=1", "a.c=x"], {"a": {"b": 1, "c": "x"}}),
        (["node-name=x", "read-only=true"], {"node-name": "x", "read-only": True}),
        (["command-line=info status"], {"command-line": "info status"}),
        (['{"a": {"b": 1}}', "a.c=2"], {"a": {"b": 1, "c": 2}}),
        (["value="], {"value": ""}),
        (["file=a=b"], {"file": "a=b"}),
    ],
)
def test_arguments(words: list[str], arguments: dict[str, Any]) -> None:
    assert arguments_from(words) == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["id"], "arguments: 'id': write key=value, for example device=disk0 or "),
        (["=1"], "'=1': write key=value"),
        (["a..b=1"], "'a..b=1': write key=value"),
        (["a=1", "a=2"], "'a=2': 'a' is given twice"),
        (["a=1", "a.b=2"], "'a.b=2': 'a' is given a value of its own and keys below it"),
        (["a.b=2", "a=1"], "'a=1': 'a' is given twice"),
        (['{"a": '], "this is not JSON: "),
    ],
)
def test_wrong_arguments(words: list[str], message: str) -> None:
    with pytest.raises(SpecInvalid) as raised:
        arguments_from(words)
    assert message in str(raised.value)


def test_all_wrong_arguments_are_named() -> None:
    with pytest.raises(SpecInvalid) as raised:
        arguments_from(["x", "a=1", "y"])
    assert [fault.path for fault in raised.value.faults] == ["'x'", "'y'"]


def table() -> dict[str, Any]:
    return {
        "name": "vm",
        "memory": {"size": "1GiB", "slots": 2},
        "cpu": {"cpus": 1},
        "disks": [{"file": "a"}],
    }


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("name=web", "name", "web"),
        ("memory=2GiB", "memory", {"size": "2GiB", "slots": 2}),
        ("memory.slots=0", "memory", {"size": "1GiB", "slots": 0}),
        ("cpu=4", "cpu", {"cpus": 4}),
        ("kernel.append=quiet a=b", "kernel", {"append": "quiet a=b"}),
        ("disks[0].cache=none", "disks", [{"file": "a", "cache": "none"}]),
        ("disks[1].file=b", "disks", [{"file": "a"}, {"file": "b"}]),
        ("disks[0]=null", "disks", []),
        ("disks=[]", "disks", []),
        ("nics[0].kind=user", "nics", [{"kind": "user"}]),
        ("agent=true", "agent", True),
    ],
)
def test_overrides(word: str, key: str, value: object) -> None:
    assert apply_overrides(table(), [word]) == {**table(), key: value}


def test_null_takes_a_key_out() -> None:
    assert apply_overrides(table(), ["memory.slots=null"])["memory"] == {"size": "1GiB"}
    assert "name" not in apply_overrides(table(), ["name=null"])
    assert apply_overrides(table(), ["kernel=null"]) == table()


def test_later_words_see_earlier_ones() -> None:
    made = apply_overrides(table(), ["disks=[]", "disks[0].file=x", "disks[0].format=raw"])
    assert made["disks"] == [{"file": "x", "format": "raw"}]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("memory", "--set memory: write key=value, for example memory=2GiB"),
        ("=1", "'' is no key; write for example cpu.cpus or disks[0].cache"),
        ("a..b=1", "'a..b' is no key"),
        ("disks[x].file=1", "'disks[x].file' is no key"),
        ("disks[2].file=1", "[2] is beyond the list, which has length 1"),
        ("disks[2]=1", "[2] is beyond the list, which has length 1"),
        ("name[0]=1", "[0] stands where there is no list"),
        ("name.first=1", "'first' stands where there is no table"),
        ("disks.file=1", "'file' stands where there is no table"),
        ("memory[0].x=1", "[0] stands where there is no list"),
    ],
)
def test_wrong_overrides(word: str, message: str) -> None:
    with pytest.raises(SpecInvalid) as raised:
        apply_overrides(table(), [word])
    assert message in str(raised.value)
