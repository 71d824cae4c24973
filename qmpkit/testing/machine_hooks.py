"""What the pytest plugin does around tests with a machine.

Only a run that has such tests loads it: pytest 7 may come with a pluggy that knows none of these
hooks, and the plugin is in every run where qmpkit is installed.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qmpkit.vm import VM

__all__ = ["MACHINE"]

MACHINE: pytest.StashKey[VM] = pytest.StashKey()
"""In a test's stash: its machine, while it has one."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Have Ctrl-C end the run: in a group, as trio's nurseries raise it, it fails one test only."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        if "qmp_machine" in getattr(item, "fixturenames", ()) and group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from group
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the guest had to say; the machine is gone by then."""
    report = yield
    vm = item.stash.get(MACHINE, None)
    if call.when == "teardown" and vm:
        # pytest keeps the item to the end of the run, and that its consoles.
        del item.stash[MACHINE]
    if report.failed and vm:
        whose = f"of machine {vm.name!r}, its last lines"
        told = {f"console {name} {whose}": it.tail() for name, it in vm.consoles.items()}
        told[f"stderr of the QEMU {whose}"] = vm.machine.child.stderr_tail.strip()
        report.sections += [section for section in told.items() if section[1]]
    return report
