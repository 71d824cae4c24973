"""`${name}` in paths and kernel words."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.variables import expand, variables_in
from tests.unit.spec.strategies import machines

HOST = {"tsc_khz": "2500000", "cache": "/var/cache"}


def words(append: str, **variables: str | None) -> str:
    spec = MachineSpec(kernel=Kernel("k", append=append))
    kernel = expand(spec, {**HOST, **variables}).kernel
    assert kernel is not None
    return kernel.append


def faults(spec: MachineSpec, **variables: str | None) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        expand(spec, {**HOST, **variables})
    return [str(fault) for fault in caught.value.faults]


def test_every_path_is_expanded() -> None:
    spec = MachineSpec(
        firmware="${cache}/bios",
        qemu="${cache}/qemu",
        memory=Memory(mem_path="${cache}/ram"),
        kernel=Kernel("${cache}/k", initrd="${cache}/i", append="a ${cache}"),
        disks=[
            Disk("${cache}/d", format="qcow2", make=Overlay("${cache}/${tsc_khz}", format="raw")),
        ],
    )
    assert variables_in(spec) == {"cache", "tsc_khz"}
    assert expand(spec, HOST) == MachineSpec(
        firmware="/var/cache/bios",
        qemu="/var/cache/qemu",
        memory=Memory(mem_path="/var/cache/ram"),
        kernel=Kernel("/var/cache/k", initrd="/var/cache/i", append="a /var/cache"),
        disks=[
            Disk("/var/cache/d", format="qcow2", make=Overlay("/var/cache/2500000", format="raw")),
        ],
    )


def test_nothing_else_is_expanded() -> None:
    spec = MachineSpec(name="${cache}", extra_args=["${cache}"], env={"A": "${cache}"})
    assert expand(spec, {}) == spec


def test_a_word_without_its_value_is_dropped() -> None:
    assert words("a tsc_early_khz=${tsc_khz} b") == "a tsc_early_khz=2500000 b"
    assert words("a tsc_early_khz=${tsc_khz} b", tsc_khz=None) == "a b"
    assert words("${tsc_khz}", tsc_khz=None) == ""


def test_what_has_no_variables_is_not_touched() -> None:
    assert words("a  b\t$HOME $$ ${tsc_khz}") == "a  b\t$HOME $$ 2500000"


def test_an_escape_stands_for_itself() -> None:
    assert words("$${tsc_khz}") == "${tsc_khz}"
    spec = MachineSpec(firmware="/a/$${cache}")
    assert expand(spec, {}).firmware == "/a/${cache}"


def test_a_value_is_not_expanded_again() -> None:
    assert words("${cache}", cache="${tsc_khz}") == "${tsc_khz}"


def test_all_faults_are_told_at_once() -> None:
    spec = MachineSpec(
        firmware="${tsc_khz}/b",
        kernel=Kernel("${cahce}/k", append="${} x=${cache"),
        disks=[Disk("${zzz}", format="raw")],
    )
    assert faults(spec, tsc_khz=None) == [
        "firmware: this host has no value for ${tsc_khz}",
        "kernel.image: unknown variable ${cahce} (did you mean 'cache'?)",
        "disks[0].file: unknown variable ${zzz} (known: cache, tsc_khz)",
        "kernel.append: unknown variable ${} (known: cache, tsc_khz)",
        "kernel.append: '${cache' has no closing brace ($${ for a plain ${)",
    ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines())
def test_a_machine_without_variables_comes_back_as_it_is(spec: MachineSpec) -> None:
    if not variables_in(spec):
        assert expand(spec, HOST) is spec
    else:
        assert variables_in(attrs.evolve(spec, disks=[], nics=[])) <= variables_in(spec)
