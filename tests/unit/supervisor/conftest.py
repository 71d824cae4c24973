"""Supervisors over fakes: they start in a millisecond and do what a test wants."""

from __future__ import annotations

import pytest

from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake_machine import FakeHost


@pytest.fixture
def host() -> FakeHost:
    """Where the fakes are started; its handles say what they do."""
    return FakeHost()


def spec(name: str) -> MachineSpec:
    """A machine that has all that a fake has."""
    return MachineSpec(name=name, accel="tcg", memory="16MiB")
