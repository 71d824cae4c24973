"""Every async test has a bound; live tests run on every QEMU there is, and are counted."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import settings

from tests.counts import KVM, Counts
from tests.sizes import BOARDS, QEMU_VERSIONS, share

AsyncTest = Callable[..., Awaitable[None]]
# No deadline for one example: on a busy host any may take long.
settings.register_profile("sized", max_examples=100, deadline=None)
settings.load_profile("sized")

BOUND = 60.0  # seconds an async test may take; `@pytest.mark.bound(n)` for another


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--demand-hosts",
        action="store_true",
        help="fail when no test ran on one of the QEMU versions or architectures, or on KVM",
    )
    parser.addoption("--no-kvm", action="store_true", help="this host has no KVM: do without")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bound(seconds): how long an async test may take")
    config.addinivalue_line("markers", "qemus(*versions): those of `qemu`, in CI too")
    config.addinivalue_line("markers", "boards(*pairs): those that `board` is limited to")
    wanted = [f"QEMU {version}" for version in QEMU_VERSIONS]
    wanted += [f"{arch} on {version}" for arch, version in BOARDS]
    if not config.getoption("--no-kvm"):
        wanted.append(KVM)
    demanded = bool(config.getoption("--demand-hosts"))
    if not hasattr(config, "workerinput"):  # of two workers, neither sees what the other ran
        config.pluginmanager.register(Counts(wanted, demanded=demanded))


@functools.cache
def binaries(arch: str = "x86_64") -> dict[str, str]:
    """The QEMUs of this host for guests of *arch*, by version ("7.2", "10.0")."""
    from qmpkit.testing.guests.qemus import qemu_binaries

    return {version: os.fspath(path) for version, path in qemu_binaries(arch).items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `qemu` runs on its share of the QEMU versions there are.

    With --long that is each of them, and so it is for a test that is marked with all.  One
    that takes `board` runs for each architecture but x86_64 too, wanted or there.
    """
    if "qemu" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("qemus")
        wanted = mark.args if mark else share(_position(metafunc))
        versions = [version for version in binaries() if version in wanted]
        metafunc.parametrize("qemu_version", versions, ids=lambda v: f"qemu-{v}")
    if "board" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("boards")
        metafunc.parametrize("on", mark.args if mark else BOARDS, ids=lambda pair: "-".join(pair))


def _position(metafunc: pytest.Metafunc) -> int:
    """Of a test among those of its module: the next one runs on the other QEMU."""
    tests = [name for name in vars(metafunc.module) if name.startswith("test_")]
    return tests.index(metafunc.function.__name__)


@attrs.frozen
class Board:
    """An architecture, and a QEMU that has it."""

    arch: str
    version: str
    qemu: str


@pytest.fixture
def board(on: tuple[str, str], record_property: Callable[[str, object], None]) -> Board:
    """One architecture after the other, on one QEMU version after the other."""
    arch, version = on
    if version not in binaries(arch):
        pytest.skip(f"needs QEMU {version} for {arch}: scripts/setup --tests")
    record_property("qemu", f"QEMU {version}")
    record_property("qemu", f"{arch} on {version}")
    return Board(arch, version, binaries(arch)[version])


@pytest.fixture
def qemu(qemu_version: str, record_property: Callable[[str, object], None]) -> str:
    """Path of a qemu-system-x86_64, one version after the other."""
    record_property("qemu", f"QEMU {qemu_version}")
    return binaries()[qemu_version]


@pytest.fixture
def kvm_here() -> None:
    """Skips where this host has no KVM that a guest can run on."""
    from qmpkit.host.kvm import probe_kvm

    kvm = probe_kvm()
    if not kvm.usable:
        pytest.skip(f"needs KVM: {kvm.why}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            _bind(item)


def _bind(item: pytest.Function) -> None:
    mark = item.get_closest_marker("bound")
    seconds = float(mark.args[0]) if mark else BOUND
    hypothesis = getattr(item.obj, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = _bounded(hypothesis.inner_test, seconds)
    elif inspect.iscoroutinefunction(item.obj):
        item.obj = _bounded(item.obj, seconds)


def _bounded(test: AsyncTest, seconds: float) -> AsyncTest:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(seconds):
            await test(*args, **kwargs)

    return bounded
