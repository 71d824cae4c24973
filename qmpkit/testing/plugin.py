"""The pytest plugin: `async def test_x(qmp_machine)` gets a VM of its own.

Installed with `qmpkit[testing]`; needs pytest-trio but none of its settings, and
imports nothing heavy until a test asks for a machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qmpkit.spec.machine import MachineSpec
    from qmpkit.vm import VM

__all__ = ["qmp_machine"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that tells `qmp_machine` what to run."""
    config.addinivalue_line(
        "markers",
        "qmp_machine(profile, **changes): the profile that the qmp_machine fixture runs, and"
        " the fields of its spec to change (default: a fresh tiny Linux guest, already booted)",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every test with a machine to pytest-trio: without `trio_mode` nobody would run it."""
    if "qmp_machine" not in getattr(item, "fixturenames", ()):
        return
    if importlib.util.find_spec("pytest_trio") is None:
        raise pytest.UsageError(
            "the qmp_machine fixture needs pytest-trio, which is not installed."
            " Cure: pip install 'qmpkit[testing]'"
        )
    if item.get_closest_marker("trio") is None:
        item.add_marker(pytest.mark.trio)


@pytest.fixture
async def qmp_machine(request: pytest.FixtureRequest) -> AsyncIterator[VM]:
    """A running VM for one test, gone after it; a test whose QEMU crashes fails.

    Without the marker it is a fresh *tiny* guest restored from a cached state, its
    shell and agent answering.  `@pytest.mark.qmp_machine("q35", memory="1GiB")` runs
    another profile from its first instruction; without a profile, *tiny* is changed.
    """
    from qmpkit._running import running
    from qmpkit.testing import guests

    mark = request.node.get_closest_marker("qmp_machine")
    machine = running(_marked_spec(mark)) if mark else guests.booted()
    async with machine as vm:
        yield vm


def _marked_spec(mark: pytest.Mark) -> MachineSpec:
    import attrs

    from qmpkit.errors import Fault, SpecInvalid
    from qmpkit.spec.machine import MachineSpec
    from qmpkit.spec.profile import load_profile
    from qmpkit.spec.suggest import unknown_key

    if len(mark.args) > 1:
        fault = Fault("", "takes one profile, and the fields to change as keywords")
        raise SpecInvalid([fault], "the marker qmp_machine")
    fields = [field.name for field in attrs.fields(MachineSpec)]
    unknown = [name for name in mark.kwargs if name not in fields]
    faults = [unknown_key(name, name, fields) for name in unknown]
    if faults:
        raise SpecInvalid(faults, "the marker qmp_machine")
    return attrs.evolve(load_profile(*mark.args or ("tiny",)), **mark.kwargs)
