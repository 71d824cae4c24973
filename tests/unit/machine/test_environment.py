"""What QEMU finds in its environment."""

from __future__ import annotations

import pytest

from qmpkit import MachineSpec
from qmpkit.machine.launch import environment

TRIM = "MALLOC_TRIM_THRESHOLD_"


def test_it_is_ours_and_the_spec_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRIM, raising=False)
    monkeypatch.setenv("MINE", "a")
    found = environment(MachineSpec(env={"MINE": "b", "ITS": "c"}))
    assert (found["MINE"], found["ITS"], found[TRIM]) == ("b", "c", str(32 << 20))


def test_what_somebody_has_set_for_the_heap_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRIM, "1")
    assert environment(MachineSpec())[TRIM] == "1"
    assert environment(MachineSpec(env={TRIM: "2"}))[TRIM] == "2"
