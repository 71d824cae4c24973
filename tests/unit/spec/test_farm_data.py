"""Farms and machines through the journal and back; digests; scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.check import validate
from qmpkit.spec.farm_data import (
    farm_from_dict,
    farm_to_dict,
    machine_digest,
    machine_from_dict,
    machine_to_dict,
    scale,
)
from qmpkit.spec.farm_load import load_farm
from qmpkit.spec.farm_text import braces_doubled, fill, pattern_problem
from qmpkit.spec.health import FunctionCheck, Health
from tests.unit.spec.farm_strategies import farm_dicts
from tests.unit.spec.farms import load, names, one
from tests.unit.spec.strategies import texts

SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(farm_dicts())
def test_every_farm_survives_dict_and_json(data: dict[str, Any]) -> None:
    farm = farm_from_dict(data)
    assert farm_from_dict(json.loads(json.dumps(farm_to_dict(farm)))) == farm
    for machine in farm.machines:
        validate(machine.spec)
        stored = json.loads(json.dumps(machine_to_dict(machine)))
        assert machine_from_dict(stored) == machine
        assert machine_digest(machine_from_dict(stored)) == machine_digest(machine)


@settings(parent=SLOW, max_examples=20)
@given(data=farm_dicts())
def test_a_farm_is_the_same_from_a_file(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    """Relative paths become absolute, `${` is the file's own; all else is as in the dict."""
    path = tmp_path_factory.mktemp("farm") / "farm.toml"
    text = tomli_w.dumps(_escaped(data))
    path.write_text(text, encoding="utf-8")
    farm = load_farm(path)
    expected = farm_from_dict(data)
    assert names(farm) == names(expected)
    for machine, other in zip(farm.machines, expected.machines, strict=True):
        assert machine.seed == other.seed
        assert machine.spec.nics == other.spec.nics
        assert (machine.restart, machine.health) == (other.restart, other.health)
        assert (machine.spec.env, machine.spec.memory.size) == (
            other.spec.env,
            other.spec.memory.size,
        )
    assert farm_from_dict(farm_to_dict(farm)) == farm


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


@given(texts)
def test_doubled_braces_fill_in_to_themselves(text: str) -> None:
    assert pattern_problem(braces_doubled(text)) is None
    assert fill(braces_doubled(text), {"name": "web", "n": 1}) == text


def test_a_machines_dict_states_everything(tmp_path: Path) -> None:
    machine = one(tmp_path, '[networks.a]\nkind = "nat"\n[machines.web]\nnetworks = ["a"]\n')
    data = machine_to_dict(machine)
    assert (data["schema"], data["name"], data["group"]) == (1, "web", "web")
    assert data["networks"] == [
        {"name": "a", "nic": "nic0", "network": {"kind": "nat", "restrict": False}}
    ]
    assert data["spec"]["schema"] == 1
    assert data["restart"]["policy"] == "never"
    assert not {"seed", "health"} & data.keys()


def test_what_an_older_version_did_not_write_has_its_default(tmp_path: Path) -> None:
    machine = one(tmp_path, "[machines.web]\n")
    data = machine_to_dict(machine)
    for key in ("networks", "restart", "after", "requires"):
        del data[key]
    del data["spec"]["sandbox"]
    assert machine_from_dict(data) == machine


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"schema": 2}, ["schema: 2 is newer than the 1 this qmpkit reads (update qmpkit)"]),
        ({"nmae": 1}, ["nmae: unknown key (did you mean 'name'?)"]),
        (
            {"name": 5, "after": "a", "seed": {"usr": "a"}},
            [
                "name: must be a text, not a number: 5",
                "seed.usr: unknown key (did you mean 'user'?)",
                "after: must be a list, not a text: 'a'",
            ],
        ),
        (
            {"health": {"checks": [{}]}},
            ["health.checks[0].kind: is missing (one of 'process', 'qmp', 'agent', 'tcp',"],
        ),
        ({"health": {"checks": [], "retries": 0}}, ["health.checks: there is none", "health.retr"]),
        (
            {"networks": [{"name": "a", "nic": "nic0", "network": {"kind": "cloud"}}]},
            ["networks[0].network.kind: must be one of 'segment', 'nat', 'bridge', not 'cloud'"],
        ),
        ({"spec": {"schema": 1, "cpu": 0}}, ["cpu.cpus: a machine has at least one processor,"]),
    ],
)
def test_a_bad_record(tmp_path: Path, change: dict[str, Any], faults: list[str]) -> None:
    data = machine_to_dict(one(tmp_path, "[machines.web]\n")) | change
    with pytest.raises(SpecInvalid) as caught:
        machine_from_dict(data, source="web.json")
    assert caught.value.source.startswith("web.json")
    found = [str(fault) for fault in caught.value.faults]
    assert [text[: len(fault)] for text, fault in zip(found, faults, strict=True)] == faults


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "schema: is missing (schema = 1)"),
        ({"schema": 1, "machine": {}}, "machine: unknown key (did you mean 'machines'?)"),
        ({"schema": 1, "machines": []}, "machines: must be a table, not a list"),
        ({"schema": 1, "machines": {"a": 5}}, "machines.a: must be a table, not a number"),
        ({"schema": 1, "machines": {"a": {"cpu": 0}}}, "machines.a.cpu.cpus: a machine has at"),
    ],
)
def test_a_bad_farm(data: dict[str, Any], fault: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        farm_from_dict(data)
    assert str(caught.value.faults[0]).startswith(fault)


def test_a_dict_is_not_shared_with_the_farm(tmp_path: Path) -> None:
    farm = load(tmp_path, "[machines.web]\nenv = { A = '1' }\nhealth = ['qmp']\n")
    digest = machine_digest(farm.machines[0])
    farm_to_dict(farm)["machines"]["web"]["env"]["A"] = "2"
    machine_to_dict(farm.machines[0])["health"]["checks"].append(1)
    assert farm.tables["web"]["env"] == {"A": "1"}
    assert machine_digest(farm.machines[0]) == digest


def test_a_function_is_not_written_down(tmp_path: Path) -> None:
    async def well(_: object) -> bool:
        return True

    health = Health(checks=[FunctionCheck(well)])
    machine = attrs.evolve(one(tmp_path, "[machines.web]\n"), health=health)
    with pytest.raises(SpecInvalid, match="'well' is a function"):
        machine_to_dict(machine)


WEB = """
    [networks.lan]
    kind = "segment"
    [machines.web]
    count = 2
    networks = ["lan"]
    cloud_init.user = "ada"
    [machines.db]
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("count = 2", "count = 2\nmemory = '1GiB'"),
        ('"ada"', '"eve"'),
        ('"segment"', '"segment"\nsubnet = "10.1.0.0/24"'),
        ('"segment"', '"nat"'),
        ("count = 2", "count = 2\nrestart = 'always'"),
        ("count = 2", "count = 2\nafter = ['db']"),
        ("count = 2", "count = 2\nhealth = 'qmp'"),
    ],
)
def test_the_digest_sees_every_change(tmp_path: Path, old: str, new: str) -> None:
    before = load(tmp_path, WEB)
    after = load(tmp_path, WEB.replace(old, new))
    digests = [[machine_digest(machine) for machine in farm.machines] for farm in (before, after)]
    assert digests[0][0] != digests[1][0]
    assert digests[0][2] == digests[1][2]
    assert len(set(digests[0])) == 3


def test_scaling_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    farm = load(tmp_path, WEB)
    larger = scale(farm, "web", 4)
    assert names(larger) == ["web1", "web2", "web3", "web4", "db"]
    assert larger.machines[:2] == farm.machines[:2]
    assert names(scale(larger, "web", 0)) == ["db"]
    assert scale(larger, "web", 2) == farm


@SLOW
@given(farm_dicts(), st.integers(0, 5))
def test_scaling_there_and_back(data: dict[str, Any], count: int) -> None:
    farm = farm_from_dict(data)
    for group, table in farm.tables.items():
        if "count" in table:
            assert scale(scale(farm, group, count), group, table["count"]) == farm


@pytest.mark.parametrize(
    ("group", "count", "fault"),
    [
        ("wbe", 1, "there is no table machines.wbe (did you mean 'web'?)"),
        ("nix", 1, "there is no table machines.nix (there are: web, db)"),
        ("db", 2, "machines.db.count: this is a single machine"),
        ("web", -1, "machines.web.count: must be from 0 to 1000, not -1"),
        ("web", "3", "machines.web.count: must be a whole number, not a text: '3'"),
    ],
)
def test_what_cannot_be_scaled(tmp_path: Path, group: str, count: int, fault: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        scale(load(tmp_path, WEB), group, count)
    assert str(caught.value.faults[0]).startswith(fault)


def test_scaling_into_a_taken_port(tmp_path: Path) -> None:
    farm = load(tmp_path, '[machines.a]\nprofile = "q35"\ncount = 1\nports = ["8080:80"]\n')
    with pytest.raises(SpecInvalid, match=r"machines\.a\.ports\[0\]\.host: port 8080 .* both"):
        scale(farm, "a", 2)
