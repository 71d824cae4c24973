"""spec ↔ dict ↔ TOML: nothing lost, nothing coerced, every fault at its path at once."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.chardev import Serial
from qmpkit.spec.check import validate
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.data import spec_from_dict, spec_from_toml, spec_to_dict, spec_to_toml
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import Forward, UserNic
from qmpkit.spec.sizes import GIB, MIB
from tests.unit.spec.strategies import machines

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        spec_from_dict({"schema": 1, **data})
    return [str(fault) for fault in caught.value.faults]


@SLOW
@given(machines())
def test_every_machine_survives_dict_json_and_toml(spec: MachineSpec) -> None:
    validate(spec)
    assert spec_from_dict(spec_to_dict(spec)) == spec
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
    assert spec_from_toml(spec_to_toml(spec)) == spec


@SLOW
@given(machines())
def test_leaving_defaults_out_loses_nothing(spec: MachineSpec) -> None:
    assert spec_from_toml(spec_to_toml(spec, defaults=False)) == spec


def test_a_dict_states_every_field_that_has_a_value() -> None:
    # So that a stored machine keeps its meaning when a default changes.
    data = spec_to_dict(MachineSpec())
    expected = {field.name for field in attrs.fields(MachineSpec) if field.default is not None}
    assert data.keys() == {"schema", *expected}


def test_what_differs_from_the_defaults_is_all_that_a_short_text_says() -> None:
    spec = MachineSpec(name="web", memory="1GiB", disks=[Disk("a.img", format="raw")], cpu=2)
    assert spec_to_toml(spec, defaults=False) == (
        'schema = 1\nname = "web"\ncpu = 2\nmemory = "1GiB"\n'
        'disks = [\n    { file = "a.img", format = "raw" },\n]\n'
    )


def test_short_forms_mean_what_the_long_ones_mean() -> None:
    short = spec_from_toml("""
        schema = 1
        cpu = 2
        memory = "1GiB"
        serials = 2
        nics = [{kind = "user", forwards = ["2222:22"]}]
        [[disks]]
        file = "a.qcow2"
        format = "qcow2"
        make = {file = "base.img", format = "raw"}
        [[disks]]
        file = "b.qcow2"
        format = "qcow2"
        make = "10GiB"
    """)
    assert short.nics == (UserNic(id="nic0", forwards=[Forward(2222, 22)]),)
    assert short == MachineSpec(
        cpu=Cpu(2),
        memory=Memory(GIB),
        serials=[Serial("serial0"), Serial("serial1")],
        nics=[UserNic(forwards=["2222:22"])],
        disks=[
            Disk("a.qcow2", format="qcow2", make=Overlay("base.img", format="raw")),
            Disk("b.qcow2", format="qcow2", make=10 * GIB),
        ],
    )


def test_all_faults_of_a_table_are_reported_at_once_each_with_its_path() -> None:
    found = faults(
        {
            "nmae": "web",
            "cpu": {"cpus": "2", "model": "a model"},
            "memory": "12 parsecs",
            "agent": 1,
            "accel": "kvn",
            "disks": [
                {"file": 3, "formt": "raw"},
                {"file": "b.img", "format": "raw", "make": "1GB"},
                {"file": "c.img", "format": "raw", "aio": "native"},
            ],
            "nics": [{"kind": "usr"}, {"forwards": []}],
            "serials": 9,
        }
    )
    assert sorted(found) == sorted(
        [
            "nmae: unknown key (did you mean 'name'?)",
            "cpu.cpus: must be a whole number, not a text: '2'",
            "cpu.model: 'a model' is not a CPU model (flags go into cpu.flags)",
            "memory.size: '12 parsecs' has an unknown unit 'parsecs'; use KiB, MiB, GiB or TiB",
            "agent: must be true or false, not a number: 1",
            "accel: must be one of 'auto', 'kvm', 'tcg', not 'kvn' (did you mean 'kvm'?)",
            "disks[0].file: must be a text, not a number: 3",
            "disks[0].formt: unknown key (did you mean 'format'?)",
            "disks[0].format: is missing",
            "disks[1].make: '1GB' is ambiguous; qmpkit counts in 1024s: write GiB",
            "disks[2].aio: native does not work with cache 'writeback'"
            ' (cache = "none" or "directsync")',
            "nics[0].kind: must be one of 'user', 'tap', 'stream', 'dgram', not 'usr'"
            " (did you mean 'user'?)",
            "nics[1].kind: is missing (one of 'user', 'tap', 'stream', 'dgram')",
            'serials: q35 has 4 serial ports (kind = "virtio" for the others)',
        ]
    )


def test_an_item_that_is_no_table_hides_nothing() -> None:
    disks = ["a.img", {"file": "b.img", "format": "rwa"}, {"file": 1, "format": "raw"}]
    assert faults({"disks": disks, "root_ports": 999}) == [
        "disks[0]: must be a table, not a text: 'a.img'",
        "disks[1].format: must be one of 'raw', 'qcow2', 'luks', not 'rwa' (did you mean 'raw'?)",
        "disks[2].file: must be a text, not a number: 1",
        "root_ports: too many devices for the slots:"
        " there is room for 0 to 160 spare ports, not 999",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": 5}, "name: must be a text, not a number: 5"),
        ({"root_ports": True}, "root_ports: must be a whole number, not true or false: True"),
        (
            {"root_ports": 1.0},
            "root_ports: must be a whole number, not a number with a fraction: 1.0",
        ),
        ({"sandbox": "no"}, "sandbox: must be true or false, not a text: 'no'"),
        ({"launcher": "nice"}, "launcher: must be a list, not a text: 'nice'"),
        ({"launcher": ["nice", 5]}, "launcher[1]: must be a text, not a number: 5"),
        ({"env": {"A": 1}}, "env.A: must be a text, not a number: 1"),
        ({"env": [["A", "1"]]}, "env: must be a table, not a list"),
        ({"disks": {}}, "disks: must be a list, not a table"),
        ({"disks": ["a.img"]}, "disks[0]: must be a table, not a text: 'a.img'"),
        ({"kernel": "vmlinuz"}, "kernel: must be a table, not a text: 'vmlinuz'"),
        ({"memory": -1}, "memory.size: a size cannot be negative, this is -1"),
        (
            {"memory": 1.5},
            'memory.size: must be a size ("10GiB"), not a number with a fraction: 1.5',
        ),
        ({"serials": -1}, "serials: cannot be negative, this is -1"),
        ({"serials": True}, "serials: must be a list, not true or false: True"),
        (
            {"nics": [{"kind": "user", "forwards": ["22"]}]},
            "nics[0].forwards[0]: '22' is not HOSTPORT:GUESTPORT (\"2222:22\")",
        ),
        (
            {"nics": [{"kind": "user", "ifname": "tap0"}]},
            "nics[0].ifname: unknown key"
            " (known: boot, bus, forwards, id, kind, link, mac, model, net, restrict)",
        ),
        (
            {"nics": [{"kind": "tap", "ifname": 0}]},
            "nics[0].ifname: must be a text, not a number: 0",
        ),
        (
            {"machine_options": {"smm": [1]}},
            "machine_options.smm: must be a text, a number or true or false, not a list",
        ),
    ],
)
def test_nothing_is_coerced(data: dict[str, Any], message: str) -> None:
    assert faults(data) == [message]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, "schema: is missing (schema = 1)"),
        ({"schema": 2}, "schema: 2 is newer than the 1 this qmpkit reads (update qmpkit)"),
        ({"schema": "1"}, "schema: must be a number from 1, not a text"),
        ({"schema": True}, "schema: must be a number from 1, not true or false"),
        ({"schema": 0}, "schema: must be a number from 1, not a number"),
    ],
)
def test_only_this_schema_is_read(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec_from_dict({**schema, "unknown": 1})
    assert [str(fault) for fault in caught.value.faults] == [message]


def test_a_text_that_is_not_toml_is_told_with_its_line() -> None:
    with pytest.raises(SpecInvalid, match=r"web\.toml: this is not TOML: .*line 2"):
        spec_from_toml("schema = 1\nname = web\n", source="web.toml")


def test_the_source_stands_before_the_faults() -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec_from_toml("schema = 1\nname = 5\nagent = 1\n", source="web.toml")
    assert str(caught.value) == (
        "web.toml: 2 faults:\n"
        "  - name: must be a text, not a number: 5\n"
        "  - agent: must be true or false, not a number: 1"
    )


def test_constructors_take_what_people_write_and_evolve_is_typed() -> None:
    spec = attrs.evolve(MachineSpec(), memory="1GiB", cpu=2, serials=2, disks=[], env={"A": "b"})
    assert spec.memory == Memory(1024 * MIB)
    assert spec.cpu == Cpu(2)
    assert [serial.name for serial in spec.serials] == ["serial0", "serial1"]
    assert Kernel("vmlinuz", append="quiet").initrd is None


def test_a_size_that_is_none_is_refused_by_the_constructor() -> None:
    with pytest.raises(SpecInvalid, match="'1GB' is ambiguous"):
        Disk("a", format="raw", make="1GB")
    with pytest.raises(SpecInvalid, match="'lots' is not a size"):
        MachineSpec(memory="lots")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a nested value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    inner = [value[key] for key in keys if isinstance(value[key], dict | list)]
    return found + [place for item in inner for place in places(item)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines(), st.data())
def test_whatever_stands_in_a_table_only_ever_gives_faults(
    spec: MachineSpec, data: st.DataObject
) -> None:
    table = spec_to_dict(spec, defaults=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(table)))
        container[key] = data.draw(JSON | st.sampled_from(["qcow2", "user", "1GiB", {}, []]))
    try:
        spec_from_dict(table)
    except SpecInvalid as error:
        assert error.faults  # and no other exception may come
        assert str(error)
