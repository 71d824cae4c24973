"""The disks of machines that are adopted: compared, whatever the machine does meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import attrs
import pytest

from qmpkit import Disk, MachineSpec
from qmpkit.testing.fake import Refuse
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def with_disk(tmp_path: Path) -> MachineSpec:
    disk = Disk(file=str(tmp_path / "a.raw"), format="raw", make="1MiB")
    return attrs.evolve(spec("a"), machine="q35", disks=[disk])


async def test_one_that_dies_while_it_is_asked_is_started_again(with_disk: MachineSpec) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(with_disk, restart="always")
        ground["a"].qemu.on("query-block", lambda _: ground["a"].end(signal.SIGKILL))
        async with lab(ground) as second:
            kept = second.kept["a"]
            await kept.until(lambda: kept.state == "running" and len(ground.started) == 2)


async def test_one_that_does_not_say_is_supervised_all_the_same(with_disk: MachineSpec) -> None:
    def refuse(_: object) -> None:
        raise Refuse("not now")

    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(with_disk)
        ground["a"].qemu.on("query-block", refuse)
        async with lab(ground) as second:
            with second.subscribe(since=-1) as events:
                async for it in events:
                    if it.state == "differs":
                        break
            assert it.cause.startswith("its disks are unknown:") and "not now" in it.cause
            assert second.kept["a"].tended
