"""A migration that is cut off at any point: the machine is where it was, or where it went."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    CannotMigrate,
    MachineDied,
    MigrationFailed,
    MigrationUnknown,
    NotArrived,
    State,
    Step,
)
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.operations.migration.options import Way
from qmpkit.qmp.session import Direction
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, write
from tests.live.counting import counted
from tests.live.migrating import (
    SLOW,
    At,
    counting,
    dies_of_running,
    lives_on,
    options_for,
    still_here,
)
from tests.live.small_disk import small_disk
from tests.sizes import FILE_SWITCHES, LONG, MIGRATION_CANCELS, NEWEST

pytestmark = pytest.mark.live

# The messages at which the destination is killed, by whose monitor they pass; CI has some.
_BEGINS: tuple[tuple[str, Direction], ...] = (("migrate", "sent"),)
_IS_CHECKED: tuple[tuple[str, Direction], ...] = (("query-jobs", "sent"),)
AT_SOURCE = (*_BEGINS, *(_IS_CHECKED if LONG else ()))
_BEFORE: tuple[tuple[str, Direction], ...] = (("migrate-set-capabilities", "sent"),)
AT_DESTINATION: tuple[tuple[str, Direction], ...] = (
    ("migrate-incoming", "sent"),
    *(_BEFORE if LONG else ()),
)
AT_SWITCH: tuple[tuple[str, Direction], ...] = (
    ("migrate-continue", "sent"),
    *((("pre-switchover", "received"), ("device", "received")) if LONG else ()),
)
CUT_WAYS: tuple[Way, ...] = ("unix", "tcp", "fd") if LONG else ("unix",)


@pytest.mark.parametrize(("word", "direction"), AT_SOURCE)
async def test_the_destination_dies_beside_the_source(
    qemu: str, word: str, direction: Direction, tmp_path: Path
) -> None:
    at = At(word, direction)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises(MigrationFailed, match=r"is as it was.*QEMU has ended"):
                await vm.migrate(destination)
            assert at.has_come
            with pytest.raises(NotArrived):
                await vm.migrate(destination)
        await still_here(vm, had)


@pytest.mark.parametrize(("word", "direction"), AT_DESTINATION)
async def test_the_destination_dies_of_what_it_is_told(
    qemu: str, word: str, direction: Direction, tmp_path: Path
) -> None:
    at = At(word, direction)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, options=at.options) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises(MigrationFailed, match="is as it was"):
                await vm.migrate(destination)
            assert at.has_come
        await still_here(vm, had)


async def test_one_that_was_never_told_to_run_has_not_run(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination ends when all is there, and is seen to have before it is told to run."""
    run = LocalEnd.run

    async def late(self: LocalEnd, *, runs: bool) -> float | None:
        self._machine.child.kill()
        await self._machine.wait()
        return await run(self, runs=runs)

    monkeypatch.setattr(LocalEnd, "run", late)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationFailed, match="is as it was"):
                await vm.migrate(destination)
        monkeypatch.undo()
        await still_here(vm, had)


async def test_nobody_guesses_whether_it_ran(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination dies of being told to run: the source stands still, and nobody writes."""
    dies_of_running(monkeypatch)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationUnknown, match="as after a power cut"):
                await vm.migrate(destination)
            assert destination.machine.state is State.GONE
        assert vm.state is State.PAUSED and vm.report is None
        await vm.resume()  # its owner's word
        await lives_on(vm, had)


@pytest.mark.parametrize("knows", [True, False])
async def test_a_cancellation_hides_no_outcome(
    qemu: str, knows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the destination is told to run: who is told of it goes by its type."""
    tell, outcome = LocalEnd._told_to_run, MigrationFailed if knows else MigrationUnknown

    async def told(self: LocalEnd) -> None:
        scope.cancel()
        if knows:
            await self._machine.execute("x-no-such-command")
        self._machine.child.kill()
        await tell(self)

    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        with trio.CancelScope() as scope, monkeypatch.context() as patch:
            patch.setattr(LocalEnd, "_told_to_run", told)
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(outcome):
                    await vm.migrate(destination)
        if not knows:
            await vm.resume()  # its owner's word
        await lives_on(vm, had)


async def test_the_destination_dies_as_its_guest_stands_still(qemu: str, tmp_path: Path) -> None:
    """All may be there by then, and it be told to run: whether it has, nobody knows."""
    at = At("STOP", "received")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises((MigrationFailed, MigrationUnknown)) as outcome:
                await vm.migrate(destination)
            assert at.has_come and destination.machine.state is State.GONE
        if outcome.type is MigrationUnknown:
            assert vm.state is State.PAUSED
            await vm.resume()  # its owner's word
        await still_here(vm, had)


async def test_the_source_is_killed(qemu: str, tmp_path: Path) -> None:
    at, spec = At("migrate"), counting(qemu, tmp_path)
    async with leaks():
        with pytest.raises(MachineDied):
            async with qmpkit.running(spec, options=at.options) as vm:
                await vm.console.expect(".")
                await write(vm, "disk0", 0, 5)
                async with qmpkit.receiving(vm) as destination:
                    at.victim = vm.pid
                    await vm.migrate(destination)
        assert at.has_come
        async with qmpkit.running(spec) as vm:  # nobody holds its images
            await vm.console.expect(".")
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5})


async def test_the_source_is_killed_as_its_guest_stands_still(qemu: str, tmp_path: Path) -> None:
    """What it still had may be there by then: the guest lives on there, or it has died."""
    at, spec, is_there = At("STOP", "received"), counting(qemu, tmp_path), False
    async with leaks():
        try:
            async with qmpkit.running(spec, options=at.options) as vm:
                await vm.console.expect(".")
                had = await counted(vm)
                await write(vm, "disk0", 0, 5)
                async with qmpkit.receiving(vm) as destination:
                    at.victim = vm.pid
                    await vm.migrate(destination)
                    is_there = True
                    await lives_on(destination.vm, had)
        except MachineDied:
            assert not is_there
        assert at.has_come
        async with qmpkit.running(spec) as vm:  # nobody holds its images
            await vm.console.expect(".")
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5})


async def test_a_source_that_dies_once_all_is_there_is_no_loss(qemu: str, tmp_path: Path) -> None:
    """The guest lives on, and so does the block: what the source still had was of the past."""
    at, has_lived_on = At("completed", "received"), False
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, options=at.options) as destination:
            at.victim = vm.pid
            await vm.migrate(destination)
            assert at.has_come and vm.report is not None and vm.report.expected
            await lives_on(destination.vm, had)
            has_lived_on = True
    assert has_lived_on


@pytest.mark.parametrize("way", CUT_WAYS)
async def test_the_connection_is_cut(qemu: str, way: Way, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)

        async def cut(task_status: trio.TaskStatus[None]) -> None:
            with vm.subscribe("MIGRATION", where={"status": "active"}) as changes:
                task_status.started()
                await changes.next()
            await vm.execute("yank", {"instances": [{"type": "migration"}]})

        async with qmpkit.receiving(vm) as destination, trio.open_nursery() as nursery:
            await nursery.start(cut)
            with pytest.raises(MigrationFailed):
                await vm.migrate(destination, options=attrs.evolve(SLOW, way=way))
        await still_here(vm, had)


@pytest.mark.parametrize(("word", "direction"), AT_SWITCH)
async def test_one_into_a_file_is_called_off_as_it_switches(
    qemu: str, word: str, direction: Direction, tmp_path: Path
) -> None:
    """QEMU 7.2 that is told to cancel then has its guest run on without the images."""
    at, options = At(word, direction), options_for("file", tmp_path)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")
        for _ in range(FILE_SWITCHES):
            had, at.has_come = await counted(vm), False
            async with qmpkit.receiving(vm) as destination:
                with trio.CancelScope() as scope:
                    at.act = scope.cancel
                    await vm.migrate(destination, options=options)
            assert at.has_come and scope.cancelled_caught
            await lives_on(vm, had)
        await still_here(vm, had)


async def test_it_is_given_up(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationFailed, match=r"as it was: enough$"):
                await vm.migrate(destination, policy=lambda _: Step(give_up="enough"), options=SLOW)
        await still_here(vm, had)


async def test_a_full_disk(qemu: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
            await vm.console.expect(".")
            had = await counted(vm)
            (small.path / "ballast").write_bytes(bytes(1000 << 10))
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(MigrationFailed):
                    await vm.migrate(destination, options=options_for("file", small.path))
            assert [path.name for path in small.path.iterdir()] == ["ballast"]
            (small.path / "memory").touch()
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(CannotMigrate, match="File exists"):
                    await vm.migrate(destination, options=options_for("file", small.path))
            await still_here(vm, had)


@pytest.mark.bound(1200 if LONG else 120)
@pytest.mark.qemus(*NEWEST)
async def test_cancelled_anywhere_it_is_here_or_there(qemu: str, tmp_path: Path) -> None:
    async with leaks(), AsyncExitStack() as stack:
        vms: list[VM] = []
        had: list[int] = []

        async def begin() -> None:
            vms.append(await stack.enter_async_context(qmpkit.running(counting(qemu, tmp_path))))
            await vms[-1].console.expect(".")
            had.append(await counted(vms[-1]))

        async def move() -> None:
            async with qmpkit.receiving(vms[-1]) as destination:
                try:
                    await vms[-1].migrate(destination)
                finally:
                    moved = destination.arrived.is_set()
                    assert (vms[-1].report is None) is not moved
                    assert destination.machine.state is State.RUNNING or not moved

        async def after() -> None:
            if vms[-1].report is None:
                await lives_on(vms[-1], had[-1])
                had.append(await counted(vms[-1]))
            else:
                await begin()

        await begin()
        cancelled = await cancel_at_every_checkpoint(move, every=MIGRATION_CANCELS, after=after)
    assert cancelled > 1
