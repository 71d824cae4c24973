"""The pytest plugin: `async def test_x(qmp_machine)` gets a VM of its own.

Installed with `qmpkit[testing]`; needs pytest-trio but none of its settings, and
imports nothing heavy until a test asks for a machine.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qmpkit.spec.machine import MachineSpec
    from qmpkit.vm import VM

__all__ = ["qmp_machine"]

_HOOKS = "qmpkit.testing.machine_hooks"
_OLDEST = 8
"""What the extra `testing` asks for; the base install has no say in it."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that tells `qmp_machine` what to run."""
    config.addinivalue_line(
        "markers",
        "qmp_machine(profile, **changes): the profile, or the MachineSpec, that the qmp_machine"
        " fixture runs, and the fields of its spec to change (default: a fresh tiny Linux guest,"
        " already booted)",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every test with a machine to pytest-trio: without `trio_mode` nobody would run it."""
    if not _wants_machine(item):
        return
    if pytest.version_tuple < (_OLDEST,):
        has = ".".join(map(str, pytest.version_tuple))
        raise pytest.UsageError(
            f"the qmp_machine fixture needs pytest {_OLDEST}, and this is {has}."
            " Cure: pip install 'qmpkit[testing]'"
        )
    if importlib.util.find_spec("pytest_trio") is None:
        raise pytest.UsageError(
            "the qmp_machine fixture needs pytest-trio, which is not installed."
            " Cure: pip install 'qmpkit[testing]'"
        )
    runner = sys.modules.get("pytest_trio.plugin")
    if runner is None or not item.config.pluginmanager.is_registered(runner):
        raise pytest.UsageError(
            "the qmp_machine fixture needs pytest-trio, which is switched off."
            " Cure: no `-p no:trio`, or `-p pytest_trio.plugin` where plugins are not loaded by"
            " themselves"
        )
    if item.get_closest_marker("trio") is None:
        item.add_marker(pytest.mark.trio)
    if not item.config.pluginmanager.has_plugin(_HOOKS):
        item.config.pluginmanager.import_plugin(_HOOKS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that pytest-trio cannot run, in words of ours, unless it is not to be run."""
    if _wants_machine(item) and (why := _unfit(item)):
        pytest.fail(f"the qmp_machine fixture runs under pytest-trio, {why}", pytrace=False)


def _wants_machine(item: pytest.Item) -> bool:
    return "qmp_machine" in getattr(item, "fixturenames", ())


def _unfit(item: pytest.Item) -> str:
    """Why pytest-trio cannot run it; "" when it can."""
    test = getattr(item, "obj", None)
    test = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    if not inspect.iscoroutinefunction(test):
        return f"and this test is not async. Cure: async def {item.name.partition('[')[0]}"
    if item.get_closest_marker("asyncio"):
        return (
            "and pytest-asyncio has this test. Cure: no mark `asyncio` on it, and"
            " asyncio_mode = strict in pytest's settings"
        )
    if "anyio_backend" in getattr(item, "fixturenames", ()):
        return (
            "and anyio's plugin has this test. Cure: no mark `anyio` on it, nor anyio_mode = auto"
        )
    return ""


@pytest.fixture
async def qmp_machine(request: pytest.FixtureRequest) -> AsyncIterator[VM]:
    """A running VM for one test, gone after it; a test whose QEMU crashes fails.

    Without the marker it is a fresh *tiny* guest restored from a cached state, its
    shell and agent answering.  `@pytest.mark.qmp_machine("q35", memory="1GiB")` runs
    another profile, or a spec of your own, from its first instruction; without a profile,
    *tiny* is changed.
    """
    from qmpkit._running import running
    from qmpkit.testing import guests
    from qmpkit.testing.machine_hooks import MACHINE

    mark = request.node.get_closest_marker("qmp_machine")
    machine = running(_marked_spec(mark)) if mark else guests.booted()
    async with machine as vm:
        request.node.stash[MACHINE] = vm
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
    profile = mark.args[0] if mark.args else "tiny"
    spec = profile if isinstance(profile, MachineSpec) else load_profile(profile)
    return attrs.evolve(spec, **mark.kwargs)
