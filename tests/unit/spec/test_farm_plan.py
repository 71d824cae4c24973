"""From what there is to what is declared: each kind of step, why, and in which order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_data import farm_from_dict, machine_digest, machine_to_dict
from qmpkit.spec.farm_order import circles, start_order
from qmpkit.spec.farm_plan import (
    Add,
    Change,
    ChangeLive,
    Known,
    Plan,
    Remove,
    RestartNeeded,
    Step,
    Unchanged,
    plan,
    scale,
)
from tests.unit.spec.farms import load

TEXT = """
    [networks.lan]
    kind = "segment"
    subnet = "10.1.0.0/24"
    [networks.out]
    kind = "nat"
    [machines.web]
    memory = "1GiB"
    description = "the web"
    networks = ["out", { name = "lan", ip = "10.1.0.5" }]
    ports = ["8080:80"]
    restart = "on-failure"
    health = { checks = ["qmp"], retries = 4 }
    disks = [{ file = "/d/{name}", format = "raw" }]
    cloud_init = { user = "ada", user_data = { password = "secret" } }
"""


def known(farm: Farm, *, running: bool = True) -> dict[str, Known]:
    return {item.name: Known(machine_to_dict(item), running) for item in farm.machines}


def told(steps: Plan) -> list[str]:
    return [f"{type(step).__name__} {step.name}" for step in steps.steps]


def step(folder: Path, old: str, new: str, *, running: bool = True) -> Step:
    before = load(folder, TEXT)
    assert old in TEXT
    (only,) = plan(load(folder, TEXT.replace(old, new)), known(before, running=running)).steps
    return only


def test_nothing_to_do(tmp_path: Path) -> None:
    farm = load(tmp_path, TEXT)
    done = plan(farm, known(farm))
    assert done == Plan((Unchanged("web", running=True),))
    assert done.is_empty
    assert plan(Farm(), {}).is_empty


def test_one_that_is_down_is_started_and_so_the_plan_is_not_empty() -> None:
    farm = farm_from_dict({"schema": 1, "machines": {"a": {"machine": "q35"}}})
    known = {it.name: Known(machine_to_dict(it), running=False) for it in farm.machines}
    assert plan(farm, known).steps == (Unchanged("a", running=False),)
    assert not plan(farm, known).is_empty


LIVE: list[tuple[str, str, list[Change]]] = [
    (
        '"on-failure"',
        '{ policy = "always", delay = 2 }',
        [
            Change("restart.policy", "on-failure", "always"),
            Change("restart.delay", 1.0, 2.0),
        ],
    ),
    ("retries = 4", "retries = 5", [Change("health.retries", 4, 5)]),
    ("the web", "a web", [Change("spec.description", "the web", "a web")]),
    ('"1GiB"', '"1GiB"\ncpu.pin = "2-3"', [Change("spec.cpu.pin", None, "2-3")]),
    ('"1GiB"', '"1GiB"\nresources.nice = 5', [Change("spec.resources.nice", None, 5)]),
    ("8080:80", "8081:80", [Change("spec.nics[0].forwards[0].host", 8080, 8081)]),
    (
        'ports = ["8080:80"]',
        "",
        [
            Change(
                "spec.nics[0].forwards",
                [{"host": 8080, "guest": 80, "proto": "tcp", "address": "127.0.0.1"}],
                [],
            )
        ],
    ),
]


@pytest.mark.parametrize(("old", "new", "changes"), LIVE)
def test_what_is_changed_live(tmp_path: Path, old: str, new: str, changes: list[Change]) -> None:
    assert step(tmp_path, old, new) == ChangeLive("web", tuple(changes), running=True)


NEEDING: list[tuple[str, str, list[Change]]] = [
    ('"1GiB"', '"2GiB"', [Change("spec.memory.size", "1GiB", "2GiB")]),
    (
        '"1GiB"',
        '"1GiB"\nkernel.image = "/k"',
        [
            Change("spec.kernel", None, {"image": "/k", "append": ""}),
        ],
    ),
    ('"1GiB"', '"1GiB"\nresources.cpu_max = 2', [Change("spec.resources.cpu_max", None, 2.0)]),
    ("/d/{name}", "/e/{name}", [Change("spec.disks[0].file", "/d/web", "/e/web")]),
    ('user = "ada"', 'user = "eve"', [Change("seed.user", "ada", "eve")]),
    (
        '"raw" }]',
        '"raw", cache = "none" }]',
        [Change("spec.disks[0].cache", "writeback", "none")],
    ),
    (
        'kind = "nat"',
        'kind = "nat"\nrestrict = true',
        [Change("spec.nics[0].restrict", False, True)],
    ),
]


@pytest.mark.parametrize(("old", "new", "needing"), NEEDING)
def test_what_needs_a_restart(tmp_path: Path, old: str, new: str, needing: list[Change]) -> None:
    found = step(tmp_path, old, new)
    assert isinstance(found, RestartNeeded)
    assert found.needing == tuple(needing)
    assert set(map(str, found.needing)) <= set(map(str, found.changes))
    stopped = step(tmp_path, old, new, running=False)
    assert stopped == ChangeLive("web", found.changes, running=False)


def test_a_limit_is_changed_live_where_there_was_one(tmp_path: Path) -> None:
    """Then there is a control group to change."""
    limited = '"1GiB"\nresources = { cpu_max = 2 }'
    before = load(tmp_path, TEXT.replace('"1GiB"', limited))
    after = load(tmp_path, TEXT.replace('"1GiB"', limited.replace("2", "3")))
    (found,) = plan(after, known(before)).steps
    assert isinstance(found, ChangeLive)
    assert [change.field for change in found.changes] == ["spec.resources.cpu_max"]


def test_a_restart_takes_the_other_changes_along(tmp_path: Path) -> None:
    text = TEXT.replace("8080", "8081").replace("1GiB", "2GiB")
    (found,) = plan(load(tmp_path, text), known(load(tmp_path, TEXT))).steps
    assert isinstance(found, RestartNeeded)
    assert [change.field for change in found.changes] == [
        "spec.memory.size",
        "spec.nics[0].forwards[0].host",
    ]
    assert [change.field for change in found.needing] == ["spec.memory.size"]


def test_what_cloud_init_is_told_is_not_shown(tmp_path: Path) -> None:
    found = step(tmp_path, '"secret"', '"changed"')
    assert isinstance(found, RestartNeeded)
    assert [change.field for change in found.changes] == ["seed.user_data"]
    assert "secret" not in str(found)
    assert "changed" not in str(found)
    assert str(found.changes[0].old).startswith("sha256:")


def test_without_a_seed_before(tmp_path: Path) -> None:
    bare = "[machines.a]\n"
    (found,) = plan(load(tmp_path, f"{bare}cloud_init = {{}}\n"), known(load(tmp_path, bare))).steps
    assert isinstance(found, RestartNeeded)
    assert found.changes == (Change("seed", None, {"hostname": "a", "ssh_keys": []}),)


ORDER = """
    [machines.web]
    count = 2
    requires = ["db"]
    [machines.db]
    after = ["log"]
    [machines.log]
    [machines.alone]
"""


def test_machines_start_in_their_order_and_end_in_the_other(tmp_path: Path) -> None:
    farm = load(tmp_path, ORDER)
    ups = ["log", "db", "web1", "web2", "alone"]
    assert sorted(told(plan(farm, {}))) == sorted(f"Add {name}" for name in ups)
    names = [step.name for step in plan(farm, {}).steps]
    assert names.index("log") < names.index("db") < names.index("web1") < names.index("web2")
    downs = [step.name for step in plan(Farm(), known(farm)).steps]
    assert downs == list(reversed(names))
    assert plan(Farm(), known(farm, running=False)).steps[0] == Remove(downs[0], running=False)


def test_room_is_made_before_it_is_taken(tmp_path: Path) -> None:
    old = load(tmp_path, '[machines.a]\nprofile = "q35"\nports = ["80:80"]\n')
    new = load(tmp_path, '[machines.b]\nprofile = "q35"\nports = ["80:80"]\n')
    assert plan(new, known(old)).steps == (Remove("a", running=True), Add(new.machines[0]))


def test_scaling_adds_and_removes_the_last(tmp_path: Path) -> None:
    farm = load(tmp_path, ORDER)
    fewer = told(plan(scale(farm, "web", 1), known(farm)))
    rest = ("log", "db", "web1", "alone")
    assert fewer[0] == "Remove web2"
    assert sorted(fewer[1:]) == sorted(f"Unchanged {name}" for name in rest)
    assert "Add web3" in told(plan(scale(farm, "web", 3), known(farm)))


def test_a_record_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SpecInvalid, match="recorded machine 'web': schema: 2 is newer"):
        plan(Farm(), {"web": Known({"schema": 2})})


def test_a_default_that_came_later_is_no_change(tmp_path: Path) -> None:
    farm = load(tmp_path, "[machines.a]\n")
    old = machine_to_dict(farm.machines[0])
    del old["after"], old["spec"]["sandbox"]
    assert plan(farm, {"a": Known(old)}).is_empty


tables = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.sampled_from(["1GiB", "2GiB"]),
        "cpu": st.integers(1, 2),
        "count": st.integers(0, 3),
        "restart": st.sampled_from([{"policy": "always"}, {"policy": "never"}]),
        "description": st.sampled_from(["a", "b"]),
        "cloud_init": st.sampled_from([{}, {"user": "ada"}]),
    },
)
farms = st.dictionaries(st.sampled_from("abc"), tables).map(
    lambda found: farm_from_dict({"schema": 1, "machines": found})
)


@given(farms, farms)
def test_the_plan_leads_from_one_farm_to_the_other(old: Farm, new: Farm) -> None:
    before = {item.name: item for item in old.machines}
    after = {item.name: item for item in new.machines}
    kinds: dict[str, Any] = {step.name: step for step in plan(new, known(old)).steps}
    assert kinds.keys() == before.keys() | after.keys()
    for name, found in kinds.items():
        assert isinstance(found, Remove) == (name not in after)
        assert isinstance(found, Add) == (name not in before)
        if name in before and name in after:
            same = machine_digest(before[name]) == machine_digest(after[name])
            assert isinstance(found, Unchanged) == same


@given(st.dictionaries(st.integers(0, 9), st.sets(st.integers(0, 9), max_size=3)))
def test_orders_and_circles(edges: dict[int, set[int]]) -> None:
    before = {str(name): [str(other) for other in others] for name, others in edges.items()}
    seen: set[str] = set()
    for found in circles(before):
        assert found[0] == found[-1] == min(found, key=list(before).index)
        for name, other in pairwise(found):
            assert other in before[name]
        assert not seen & set(found)
        seen |= set(found)
    if not seen:
        order = start_order(before)
        assert sorted(order) == sorted(before)
        for name in order:
            done = set(order[: order.index(name)])
            assert {other for other in before[name] if other in before} <= done


def test_a_chain_longer_than_pythons_stack() -> None:
    before = {str(number): [str(number + 1)] for number in range(5000)}
    assert not [*circles(before)]
    assert start_order(before)[0] == "4999"
    whole = {**before, "4999": ["0"]}
    assert [len(path) for path in circles(whole)] == [5001]


def test_many_circles_take_no_time() -> None:
    """Each of 400 waits for 400 others, and they for it; then 400 pairs."""
    ends = [[f"{side}{number}" for number in range(400)] for side in "ab"]
    tangled = {
        name: other for names, other in zip(ends, reversed(ends), strict=True) for name in names
    }
    assert len([*circles(tangled)]) == 1
    pairs = {
        name: [other] for names in (ends, ends[::-1]) for name, other in zip(*names, strict=True)
    }
    assert len([*circles(pairs)]) == 400


def test_a_cable_is_not_moved_under_a_guest(tmp_path: Path) -> None:
    found = step(tmp_path, "lan", "dmz")
    assert isinstance(found, RestartNeeded)
    assert Change("networks[1].name", "lan", "dmz") in found.needing
