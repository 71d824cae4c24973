"""Every name fits QEMU's limits, and every MAC is one a NIC may have."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.spec import names
from tests.unit.spec import strategies


@given(strategies.ids)
def test_made_up_node_names_always_fit(disk: str) -> None:
    assert names.id_problem(disk) == ""
    for node in (names.format_node(disk), names.file_node(disk)):
        assert names.node_problem(node) == ""
        assert len(node) <= 31


@given(st.text(), st.text())
def test_macs_are_local_unicast_and_stable(machine: str, nic: str) -> None:
    mac = names.mac_of(machine, nic)
    assert re.fullmatch(r"52:54(:[0-9a-f]{2}){4}", mac)
    assert int(mac[:2], 16) & 0b11 == 0b10
    assert names.mac_of(machine, nic) == mac


def test_machine_and_nic_both_change_the_mac() -> None:
    # ("a", "bc") and ("ab", "c") are different NICs.
    pairs = [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "b")]
    assert len({names.mac_of(*pair) for pair in pairs}) == 4


def test_the_mac_of_a_name_never_changes() -> None:
    # Guests remember their NICs by it: a new formula would rename them all.
    assert names.mac_of("vm", "nic0") == "52:54:0a:1c:9f:a2"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is not a name QEMU takes"),
        ("0disk", "is not a name QEMU takes"),
        ("a,b", "is not a name QEMU takes"),
        ("a b", "is not a name QEMU takes"),
        ("a\n", "is not a name QEMU takes"),
        ("dïsk", "is not a name QEMU takes"),
        ("d" * 21, "is longer than 20 characters"),
        ("qk-disk", "is kept for qmpkit's own names"),
    ],
)
def test_ids_that_qemu_or_we_refuse(name: str, problem: str) -> None:
    assert problem in names.id_problem(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "a machine needs a name"),
        ("a\nb", r"'a\nb' holds a character that cannot be printed on one line"),
        ("a\0b", r"'a\x00b' holds a character that cannot be printed on one line"),
        ("a/b", "'a/b' holds a '/'"),
        ("..", "'..' may not begin with '.', '-' or a space, nor end with a space"),
        ("-S", "'-S' may not begin with '.', '-' or a space, nor end with a space"),
        (" a", "' a' may not begin with '.', '-' or a space, nor end with a space"),
        ("é" * 33, f"'{'é' * 33}' is longer than 64 bytes"),
    ],
)
def test_machine_names_that_are_refused(name: str, problem: str) -> None:
    assert names.machine_name_problem(name) == problem


@pytest.mark.parametrize("name", ["web", "a,b", 'a "b" c', "it's", "网", "1", "a=b"])
def test_machine_names_with_commas_quotes_and_spaces_are_fine(name: str) -> None:
    assert names.machine_name_problem(name) == ""


def test_job_names_carry_kind_subject_and_number() -> None:
    assert names.job_id("commit", "disk0", 3) == "qk-commit-disk0-3"
