"""The pytest plugin: `async def test_x(qmp_machine)` gets a VM of its own.

Installed with `qmpkit[testing]`; needs pytest-trio, and imports nothing heavy
until a test asks for a machine.
"""

from __future__ import annotations

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


@pytest.fixture
async def qmp_machine(request: pytest.FixtureRequest) -> AsyncIterator[VM]:
    """A running VM for one test, gone after it; a test whose QEMU crashes fails.

    Without the marker it is a fresh *tiny* guest restored from a cached state, its
    shell and agent answering.  `@pytest.mark.qmp_machine("q35", memory="1GiB")` runs
    another profile from its first instruction.
    """
    from qmpkit._running import running
    from qmpkit.testing import guests

    mark = request.node.get_closest_marker("qmp_machine")
    machine = running(_marked_spec(mark)) if mark else guests.booted()
    async with machine as vm:
        yield vm


def _marked_spec(mark: pytest.Mark) -> MachineSpec:
    import attrs

    from qmpkit.spec.profile import load_profile

    return attrs.evolve(load_profile(*mark.args), **mark.kwargs)
