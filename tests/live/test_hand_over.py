"""A machine that nobody keeps goes to a supervisor, which keeps it from then on."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trustme

import qmpkit
from qmpkit import (
    CannotMigrate,
    MigrationFailed,
    MigrationUnknown,
    SpecInvalid,
    State,
    Step,
    UserNic,
    move_place,
)
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.tending import Life, Tending
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.kept import Places, lab
from tests.live.migrating import SLOW, counting, lives_on
from tests.live.other_host import certificates, other_host, receiver
from tests.live.receiving import Cut, door, end_both, other, runs_on
from tests.sizes import LONG, MOVE_CANCELS, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

UUID = "2b0e3b1c-6a0e-4a44-9d57-6b4c0a2f1111"


async def test_it_outlives_its_block_there(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Tending.begin

    async def begins_late(self: Tending, kept: Kept, life: Life) -> None:
        await trio.sleep(0.2)  # who waits for it there waits for that, too
        await begin(self, kept, life)

    monkeypatch.setattr(Tending, "begin", begins_late)
    spec = counting(qemu, tmp_path, uuid=UUID, nics=[UserNic(forwards=["0:22"])])
    async with leaks():
        async with other() as there, door(tmp_path / "d", there.receive) as to:
            async with qmpkit.running(spec) as vm:
                await vm.console.expect(".")
                had, ports = await counted(vm), await vm.forwards()
                with pytest.raises(CannotMigrate, match="to: unix:/no/socket: nobody waits"):
                    await qmpkit.hand_over(vm, "unix:/no/socket")
                with pytest.raises(CannotMigrate, match="policy: a guest that runs there"):
                    await qmpkit.hand_over(vm, to, policy="postcopy")
                with pytest.raises(MigrationFailed, match="enough"):
                    give_up = Step(give_up="enough")
                    await qmpkit.hand_over(vm, to, policy=lambda _: give_up, options=SLOW)
                await lives_on(vm, had)
                assert not there.kept
                took = await qmpkit.hand_over(vm, to, restart="always")
                assert 0 < took.downtime < took.seconds
                assert vm.state is State.GONE
                assert str(vm.report).startswith("its guest has migrated")
            kept = there.kept["mover"]
            await runs_on(kept, had)
            assert kept.restart.policy == "always" and len(places.qemus()) == 1
            assert kept.vm is not None and await kept.vm.forwards() == ports
        async with other() as there:
            await runs_on(there.kept["mover"], had)
        await end_both()


async def test_who_cannot_be_handed_over_stays(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as here, qmpkit.running(counting(qemu, tmp_path)) as vm:
            for to in ("unix:/no/socket", "nowhere"):
                with pytest.raises(CannotMigrate, match="uuid: it has none"):
                    await qmpkit.hand_over(vm, to)
            with pytest.raises(SpecInvalid, match="nothing is sent in clear"):
                await qmpkit.hand_over(vm, "tls://host:1")
            kept = await here.ensure(counting(qemu, tmp_path, name="kept", disks=[]))
            await kept.wait_running()
            assert kept.vm is not None
            with pytest.raises(CannotMigrate, match="it is kept"):
                await qmpkit.hand_over(kept.vm, "unix:/no/socket")
            assert vm.state is State.RUNNING
        async with lab() as here:
            await here.declare("kept", "stopped", powerdown_grace=0)
            await here.forget("kept")


@pytest.mark.bound(1200 if LONG else 60)
async def test_cancelled_anywhere_it_is_in_one_place(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    spec = counting(qemu, tmp_path, uuid=UUID)
    async with leaks():
        async with (
            other() as there,
            door(tmp_path / "d", there.receive) as to,
            AsyncExitStack() as stack,
        ):
            vm = await stack.enter_async_context(qmpkit.running(spec))
            await vm.console.expect(".")
            had = await counted(vm)

            async def move() -> None:
                await qmpkit.hand_over(vm, to)

            async def after() -> None:
                nonlocal vm, had
                with trio.fail_after(20):  # who does not have it may hear of it a moment later
                    while len(places.qemus()) != 1 or (vm.report is None) is bool(there.kept):  # noqa: ASYNC110
                        await trio.sleep(0.02)
                if not there.kept:
                    await lives_on(vm, had)
                    had = await counted(vm)
                    return
                await runs_on(there.kept["mover"], had)
                await there.declare("mover", "stopped", powerdown_grace=0)
                await there.forget("mover")
                await stack.aclose()
                vm = await stack.enter_async_context(qmpkit.running(spec))
                await vm.console.expect(".")
                had = await counted(vm)

            assert await cancel_at_every_checkpoint(move, every=MOVE_CANCELS, after=after) > 1
        await end_both()


@pytest.mark.skipif(not LONG, reason="its daemon is a command of its own: with --long")
async def test_to_another_host(qemu: str, places: Places, tmp_path: Path) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    spec = counting(qemu, tmp_path, uuid=UUID)
    allowed = [tmp_path, Path(qemu).parent.parent, guests.build_kvm_tiny().parent]
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        unknown = certificates(tmp_path / "unknown", stranger, "here.example", trusts=ca)
        async with receiver(host, theirs, *allowed) as url, qmpkit.running(spec) as vm:
            await vm.console.expect(".")
            had = await counted(vm)
            with pytest.raises(CannotMigrate, match="does not know our certificate"):
                await qmpkit.hand_over(vm, move_place(url, unknown))
            await lives_on(vm, had)
            took = await qmpkit.hand_over(vm, move_place(url, ours))
            assert 0 < took.downtime < took.seconds
            assert vm.state is State.GONE and len(places.qemus()) == 1


async def test_an_answer_that_is_lost(qemu: str, places: Places, tmp_path: Path) -> None:
    """Who can be asked is asked; else it stands still, and nobody guesses."""
    spec = counting(qemu, tmp_path, uuid=UUID)
    async with leaks():
        async with other() as there, qmpkit.running(spec) as vm:
            await vm.console.expect(".")
            had = await counted(vm)
            async with door(tmp_path / "one", Cut(there.receive, "run", passes=False)) as to:
                with pytest.raises(MigrationFailed):
                    await qmpkit.hand_over(vm, to)
            await lives_on(vm, had)
            assert not there.kept
            deaf = Cut(there.receive, "run", passes=False, deaf=True)
            async with door(tmp_path / "two", deaf) as to:
                with pytest.raises(MigrationUnknown, match=r"two: .*Cure: look there") as unknown:
                    await qmpkit.hand_over(vm, to)
                assert unknown.value.place == to and vm.state is State.PAUSED
            await vm.resume()  # one has looked
            await lives_on(vm, had)
            async with door(tmp_path / "three", Cut(there.receive, "run", passes=True)) as to:
                await qmpkit.hand_over(vm, to)
            assert vm.report is not None
            await runs_on(there.kept["mover"], had)
        await end_both()


PROGRAM = """
import os, signal, sys
from pathlib import Path
import trio
import qmpkit
from qmpkit.operations.migration.wire import Wire
from tests.live.migrating import counting

to, folder, qemu, when, uuid = sys.argv[1:]
really = Wire.send

async def send(wire, message):
    decides = message.get("ask") == "run"
    if decides and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await really(wire, message)
    if decides:
        os.kill(os.getpid(), signal.SIGKILL)

Wire.send = send

async def main():
    async with qmpkit.running(counting(qemu, Path(folder), uuid=uuid)) as vm:
        await vm.console.expect(".")
        await qmpkit.hand_over(vm, to)

trio.run(main)
"""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_its_program_dies(qemu: str, places: Places, tmp_path: Path, when: str) -> None:
    """The other side has it if it has heard that it is to; never do two run."""
    async with leaks():
        async with other() as there, door(tmp_path / "d", there.receive) as to:
            argv = [sys.executable, "-c", PROGRAM, to, str(tmp_path), qemu, when, UUID]
            done = await trio.run_process(argv, check=False)
            assert done.returncode == -9
            if when == "after":
                with trio.fail_after(20):
                    while "mover" not in there.kept or not there.kept["mover"].tended:  # noqa: ASYNC110
                        await trio.sleep(0.02)
                await runs_on(there.kept["mover"], 0)
            with trio.fail_after(20):
                while len(places.qemus()) != (when == "after") or (  # noqa: ASYNC110
                    len(there.kept) != (when == "after")
                ):
                    await trio.sleep(0.02)
        await end_both()
