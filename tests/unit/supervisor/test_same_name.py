"""A name is one machine's, whoever asks for it at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit.errors import LaunchFailed, SpecInvalid
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from qmpkit.testing.fake_machine import FakeHost
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import HASTY, lab

pytestmark = pytest.mark.usefixtures("state")


async def test_those_who_ensure_the_same_have_one() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        had: list[Kept] = []

        async def ensure() -> None:
            had.append(await supervisor.ensure(spec("a")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ensure)
        assert had == [supervisor.kept["a"]] * 3
        assert len(ground.started) == 1


async def test_who_waits_for_one_that_does_not_start_does_not_bring_it_up(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        ground.prepare = lambda fake: fake.end(1)

        async def ensure() -> None:
            with pytest.raises(LaunchFailed):
                await supervisor.ensure(spec("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ensure)
            while "a" not in supervisor.kept:
                await trio.lowlevel.checkpoint()
            with pytest.raises(SpecInvalid, match="no kept machine has it"):
                await supervisor.declare("a", "running")
        assert (ground.alive, supervisor.kept) == ([], {})
        assert entries_in(state / JOURNAL) == {}


async def test_one_of_the_block_and_a_kept_one_are_not_both_there(host: FakeHost) -> None:
    async with fake_ground() as ground:
        supervisor = Supervisor("lab", keep=True, ground=ground, options=HASTY, start=host.start)
        async with supervisor:
            refused = 0

            async def one(kept: bool) -> None:
                nonlocal refused
                try:
                    await (supervisor.ensure if kept else supervisor.start)(spec("a"))
                except SpecInvalid:
                    refused += 1

            for order in ([True, False], [False, True]):
                async with trio.open_nursery() as nursery:
                    for kept in order:
                        nursery.start_soon(one, kept)
                assert len(ground.alive) + len(host.alive) == 1
                await supervisor.stop()
                await supervisor.stop_kept()
                for name in supervisor.kept:
                    await supervisor.forget(name)
            assert refused == 2
