"""Every async test has a bound; live tests run on every QEMU there is, and are counted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.sizes import LONG

AsyncTest = Callable[..., Awaitable[None]]
BOUND = 60.0  # seconds an async test may take; `@pytest.mark.bound(n)` for another


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bound(seconds): how long an async test may take")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            _bind(item)
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="a size that only `scripts/test --long` runs"))


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
