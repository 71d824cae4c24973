"""Kept machines on fakes: what is declared is written first, then made true, and adopted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit.errors import (
    HostLacks,
    JournalFailed,
    JournalNewer,
    LaunchFailed,
    SpecInvalid,
    SupervisorRunning,
)
from qmpkit.machine.report import ExitCause
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.qmp.errors import CommandRefused
from qmpkit.supervisor import journal, life, strangers
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import Refuse
from qmpkit.testing.fake_kept import FakeKept, fake_ground
from qmpkit.testing.leaks import leaks
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab, on_disk, put_on_disk, told

pytestmark = pytest.mark.usefixtures("state")


async def test_a_machine_is_left_and_adopted(state: Path) -> None:
    async with leaks(), fake_ground() as ground:
        async with lab(ground) as first:
            kept = await first.ensure(spec("a"))
            assert (kept.state, kept.declared, kept.pid) == ("running", "running", ground["a"].pid)
        assert on_disk(state, "a")["phase"] == "up"
        assert ground["a"].status is None
        async with lab(ground) as second:
            kept = second.kept["a"]
            assert (kept.state, kept.cause, kept.pid) == ("running", "adopted", ground["a"].pid)
            assert await second.ensure(spec("a")) is kept
            await second.declare("a", "stopped")
        assert len(ground.started) == 1


async def test_it_is_on_record_before_it_outlives_us(state: Path) -> None:
    seen: list[str] = []

    def prepare(fake: FakeKept) -> None:
        seen.append(on_disk(state, "a")["declared"])  # before it is started
        keep = fake.keep

        async def watched() -> bool:
            record = on_disk(state, "a")
            seen.append(record["phase"])
            assert record["identity"]["pid"] == fake.pid
            return await keep()

        fake.keep = watched  # type: ignore[method-assign]

    async with fake_ground() as ground:
        ground.prepare = prepare
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"))
    assert seen == ["running", "starting"]


@pytest.mark.parametrize("present", [True, False])
async def test_a_guests_end_is_written_before_qemu_is_ended(state: Path, *, present: bool) -> None:
    written: list[str] = []

    def quit_(_: dict[str, Any]) -> object:
        record = on_disk(state, "a")
        written.append(f"{record['phase']}: {record['end']['cause']}")
        return ground["a"].qemu.run("quit", {}, [])

    async with fake_ground() as ground:
        async with lab(ground) as first:
            kept = await first.ensure(spec("a"))
            ground["a"].qemu.on("quit", quit_)
            if present:
                ground["a"].qemu.guest_shutdown()
                await kept.wait_rest()
        if not present:
            ground["a"].qemu.guest_shutdown()
        async with lab(ground) as second:
            kept = second.kept["a"]
            end = await kept.wait_rest()
            assert end is not None
            assert end.cause is ExitCause.GUEST_SHUTDOWN
            assert (kept.state, kept.declared) == ("gone", "running")
            assert second.table()[0].pid is None
        assert written == ["ending: guest shutdown"]
        assert ground.alive == []


async def test_what_differs_is_told_and_mended() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
        ground["a"].qemu.run("stop", {}, [])
        async with lab(ground) as second:
            await second.kept["a"].wait_running()


async def test_a_silent_machine_can_be_stopped_and_holds_up_nobody() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
            await first.ensure(spec("b"))
        ground["a"].qemu.silent = True
        with trio.fail_after(20):
            async with lab(ground) as second:
                assert second.kept["b"].state == "running"
                assert second.kept["a"].state == "silent"
                await second.declare("a", "stopped")
                assert ground["a"].signals == [signal.SIGTERM]
                assert second.kept["a"].declared == "stopped"


async def test_another_uuid_is_another_machine() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
        ground["a"].qemu.uuid = "12345678-0000-0000-0000-000000000000"
        async with lab(ground) as second:
            kept = second.kept["a"]
            assert kept.state == "unreachable"
            assert "it is another machine, and is left alone" in kept.cause


async def test_a_monitor_that_is_lost_is_found_again() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        first = kept.vm
        ground["a"].qemu.hang_up()
        await kept.until(lambda: kept.vm is not None and kept.vm is not first)
        assert (kept.state, len(ground.started)) == ("running", 1)


async def test_a_pause_that_hangs_keeps_nobody_from_stopping() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        ground["a"].qemu.silent = True  # a QEMU that was frozen, which nothing tells of
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.declare, "a", "paused")
            await ground["a"].qemu.called("stop")
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            await supervisor.declare("a", "stopped")
        assert (kept.state, ground.alive) == ("gone", [])


async def test_a_declaration_that_is_made_again_is_obeyed_again() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        qemu = ground["a"].qemu
        qemu.on("stop", _refuse)
        with pytest.raises(CommandRefused, match="not now"):
            await supervisor.declare("a", "paused")
        qemu.on("stop", lambda _: qemu.run("stop", {}, []))
        with trio.fail_after(10):
            await supervisor.declare("a", "paused")
            qemu.run("cont", {}, [])  # somebody else does
            await kept.wait_running()
            await supervisor.declare("a", "paused")
        assert kept.state == "paused"


@pytest.mark.parametrize("policy", ["never", "always"])
async def test_an_end_is_told_once(policy: str) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            kept = await first.ensure(spec("a"), restart=policy)
            ground["a"].kill()
            await kept.until(lambda: kept.state == "restarting" or not kept.tended)
        async with lab(ground) as second:
            states = [it.state for it in await told(second)]
        assert states.count("gone") == 1


async def test_one_that_no_record_knows_is_told_of_and_never_doubled(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "_DYING", 0.1)
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
            await first.ensure(spec("b"))
        put_on_disk(state, "a", "{")
        async with lab(ground) as second:
            states = [it.state for it in await told(second) if it.machine == "a"]
            assert states.count("record-lost") == states.count("stranger") == 1
            with pytest.raises(HostLacks, match=r"on no record listens at .*/a/qmp\. Cure: .*quit"):
                await second.ensure(spec("a"))
            assert (len(ground.alive), [*second.kept]) == (2, ["b"])
            ground["a"].end(0)
            await second.ensure(spec("a"))


async def test_sockets_that_somebody_removed_are_told_of() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            home = (await first.ensure(spec("a"))).home
        home.socket("qmp").unlink()
        async with lab(ground) as second:
            assert second.kept["a"].state == "running"
            causes = [it.cause for it in await told(second) if it.state == "differs"]
        assert causes == [f"sockets are gone from {home.sockets}: qmp"]


async def test_one_whose_task_failed_is_never_started_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    async with fake_ground() as ground, lab(ground) as supervisor:
        sibling = await supervisor.ensure(spec("b"))
        with monkeypatch.context() as patch:
            patch.setattr(life, "_obey", broken)
            kept = await supervisor.ensure(spec("a"))
            await kept.wait_rest()
        assert (kept.state, sibling.state) == ("failed", "running")
        assert ground["a"].status is None
        with pytest.raises(SpecInvalid, match=r"it is up, or about to be .*qmpkit stop, first"):
            await supervisor.forget("a")
        await supervisor.declare("a", "paused")
        assert (kept.state, len(ground.started)) == ("paused", 2)


async def test_refusals() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("a"))
        with pytest.raises(SpecInvalid, match=r"it is up with another spec .*qmpkit stop, first"):
            await supervisor.ensure(attrs.evolve(spec("a"), memory="32MiB"))
        with pytest.raises(SpecInvalid, match="it is up, or about to be"):
            await supervisor.forget("a")
        with pytest.raises(SpecInvalid, match="no kept machine has it"):
            await supervisor.declare("b", "running")
        with pytest.raises(SpecInvalid, match="cannot be declared 'dead'"):
            await supervisor.declare("a", "dead")  # type: ignore[arg-type]
        with pytest.raises(SpecInvalid, match="taken by a kept machine"):
            await supervisor.start(spec("a"))
        with pytest.raises(SupervisorRunning, match=f"process {os.getpid()}"):
            async with lab(ground):
                pytest.fail("it was let in")
        ground["a"].qemu.on("stop", _refuse)
        with pytest.raises(Exception, match="not now"):
            await supervisor.declare("a", "paused")
        await supervisor.declare("a", "stopped")
        changed = await supervisor.ensure(attrs.evolve(spec("a"), memory="32MiB"))
        assert changed.spec.memory.size == 32 << 20


def _refuse(_: dict[str, Any]) -> object:
    raise Refuse("not now")


async def test_without_keep_nothing_is_kept() -> None:
    async with Supervisor("lab") as supervisor:
        with pytest.raises(RuntimeError, match="keep=True"):
            await supervisor.ensure(spec("a"))


async def test_a_start_that_fails_leaves_what_was(state: Path) -> None:
    async with leaks(), fake_ground() as ground, lab(ground) as supervisor:
        ground.prepare = lambda fake: fake.end(1)
        with pytest.raises(LaunchFailed):
            await supervisor.ensure(spec("a"))
        assert supervisor.kept == {}
        assert entries_in(state / JOURNAL) == {}
        ground.prepare = lambda fake: None
        await supervisor.ensure(spec("a"))
        await supervisor.declare("a", "stopped")
        before = on_disk(state, "a")
        ground.prepare = lambda fake: fake.end(1)
        with pytest.raises(LaunchFailed):
            await supervisor.declare("a", "running")
        assert on_disk(state, "a") == before
        assert supervisor.kept["a"].declared == "stopped"


async def test_a_stop_is_done_though_it_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, entries: object) -> int:
        raise OSError(28, "No space left on device")

    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        monkeypatch.setattr(journal, "add", full)
        for change in (supervisor.ensure(spec("b")), supervisor.declare("a", "paused")):
            with pytest.raises(JournalFailed, match=r"No space left on device. Cure: free some"):
                await change
        assert (kept.state, kept.declared) == ("running", "running")
        assert set(supervisor.kept) == {"a"}
        await supervisor.declare("a", "stopped")
        assert kept.pid is None
        assert isinstance(kept.not_durable, JournalFailed)
        assert ground.alive == []
        kept.home.sockets.mkdir()  # where a real start would bind them
        with pytest.raises(JournalFailed):
            await supervisor.declare("a", "running")
        assert not kept.home.sockets.exists()


async def test_a_corrupt_record_is_set_aside_and_told_of(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "_DYING", 0.1)
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
            await first.ensure(spec("b"))
        put_on_disk(state, "a", '{"schema": 1, "name"')
        async with lab(ground) as second:
            assert set(second.kept) == {"b"}
            assert (state / "machines" / "a.corrupt-1").exists()
        put_on_disk(state, "b", on_disk(state, "b") | {"schema": 2})
        with pytest.raises(JournalNewer, match="update qmpkit"):
            async with lab(ground):
                pytest.fail("it was let in")


# Cancelled anywhere


async def test_a_cancelled_ensure_leaves_nothing_or_a_machine_on_record(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:

        async def clean() -> None:
            assert len(ground.alive) == len(supervisor.kept)
            assert len(entries_in(state / JOURNAL)) == len(supervisor.kept)
            if supervisor.kept:
                await supervisor.declare("a", "stopped")
                await supervisor.forget("a")

        runs = await cancel_at_every_checkpoint(
            lambda: supervisor.ensure(spec("a")), every=3, after=clean
        )
        assert runs > 5


async def test_cancelled_adoptions_leave_the_machine() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"), restart="never")

        async def adopt() -> None:
            async with lab(ground):
                await trio.lowlevel.checkpoint()

        async def alive() -> None:
            assert len(ground.alive) == 1

        async with leaks():
            await cancel_at_every_checkpoint(adopt, every=3, after=alive)
            async with lab(ground) as last:
                assert last.kept["a"].state == "running"
        assert len(ground.started) == 1
