"""Texts that QEMU's JSON reader dies of are faults, told before anything is started."""

from __future__ import annotations

import pytest

from qmpkit import Disk, MachineSpec, SpecInvalid
from qmpkit.spec.check import validate
from qmpkit.spec.options import text_problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("disk.qcow2", ""),
        ("a,b \n 'é' \U0001f600", ""),
        ("\ufffd", ""),
        ("\udcff", "QEMU takes no text that is not UTF-8"),
        ("\ufdd0", "QEMU takes no U+FDD0, which Unicode keeps from being a character"),
        ("\uffff", "QEMU takes no U+FFFF, which Unicode keeps from being a character"),
        ("\U0010fffe", "QEMU takes no U+10FFFE, which Unicode keeps from being a character"),
    ],
)
def test_what_qemu_can_read(text: str, problem: str) -> None:
    assert text_problem(text) == problem


@pytest.mark.parametrize("text", ["\udcff", "\ufdd0"])
def test_a_file_name_of_that_kind_is_a_fault_of_its_disk(text: str) -> None:
    spec = MachineSpec(disks=[Disk(f"/srv/{text}", format="raw")])
    with pytest.raises(SpecInvalid, match=r"disks\[0\]\.file: .*QEMU takes no"):
        validate(spec)
