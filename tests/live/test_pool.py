"""Pools of real clones: many, one after another and at once, and nothing left of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import State
from qmpkit.templates.saved import CLONES
from qmpkit.testing.leaks import leaks
from tests.live.counting import counting_template, counts
from tests.sizes import HELD_AT_ONCE, POOL_CLONES

pytestmark = pytest.mark.live


@pytest.fixture
async def template(qemu: str, tmp_path: Path) -> qmpkit.Template:
    return await counting_template(qemu, tmp_path)


def mappings_of(template: qmpkit.Template) -> list[str]:
    """The processes that have a file of the template open or mapped."""
    found = []
    for process in _processes():
        try:
            if f"{template.path}/" in (process / "maps").read_text():
                found.append(process.name)
        except OSError:
            continue  # it has ended
    return found


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdecimal())


@pytest.mark.bound(900 if POOL_CLONES > 100 else 120)
async def test_many_clones_of_one_pool_leave_nothing(template: qmpkit.Template) -> None:
    names: set[str] = set()

    async def use(pool: qmpkit.Pool, count: int) -> None:
        for _ in range(count):
            async with pool.take() as vm:
                assert vm.state is State.RUNNING
                names.add(vm.name)

    async with leaks(), qmpkit.Pool(template, warm=2, twin=True) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(use, pool, POOL_CLONES // 2)
        await pool.wait_warm()
        assert len(mappings_of(template)) >= 2
    assert len(names) == POOL_CLONES
    assert list((template.path / CLONES).iterdir()) == []
    assert mappings_of(template) == []
    assert await template.verify() == ()


@pytest.mark.bound(300 if HELD_AT_ONCE > 20 else 60)
async def test_clones_held_at_once_are_all_alive(template: qmpkit.Template) -> None:
    async with (
        leaks(),
        qmpkit.Pool(template, warm=HELD_AT_ONCE, loaded=False, twin=True) as pool,
        trio.open_nursery() as nursery,
    ):
        let_go = trio.Event()
        counted: list[str] = []

        async def hold() -> None:
            async with pool.take() as vm:
                await counts(vm)
                counted.append(vm.name)
                if len(counted) == HELD_AT_ONCE:
                    assert pool.counts["taken"] == HELD_AT_ONCE
                    let_go.set()
                await let_go.wait()

        for _ in range(HELD_AT_ONCE):
            nursery.start_soon(hold)
        await let_go.wait()
        assert len(set(counted)) == HELD_AT_ONCE
    assert await template.verify() == ()


async def test_a_warm_machine_that_is_killed_is_not_given(template: qmpkit.Template) -> None:
    async with leaks(), qmpkit.Pool(template, warm=1, twin=True) as pool:
        await pool.wait_warm()
        (killed,) = mappings_of(template)
        os.kill(int(killed), signal.SIGKILL)
        async with pool.take() as vm:
            await counts(vm)
            assert vm.pid != int(killed)
