"""Kept machines that move to another process, whose supervisor may be killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    CannotMigrate,
    MachineGone,
    MigrationFailed,
    MigrationOptions,
    Round,
    SpecInvalid,
    Step,
    UserNic,
)
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.conftest import binaries
from tests.live.blocks import holds
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, end_all, lab
from tests.live.migrating import ODD, SLOW, counting
from tests.live.receiving import door, end_both, other, runs_on
from tests.live.relay import LARGE
from tests.sizes import (
    KEPT_MIGRATION_CANCELS,
    LONG,
    MIGRATION_KILLS,
    MIGRATIONS_KILLED,
    NEWEST,
    OLDEST,
    QEMU_VERSIONS,
)

pytestmark = pytest.mark.live


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_is_no_qemu_is_nowhere_to_go(qemu: str, places: Places, tmp_path: Path) -> None:
    """It says so of the destination, in the same words before and when asked for; it runs on."""
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            assert kept.vm is not None
            (fault,) = await kept.vm.migration_faults(qemu="/bin/ls")
            assert fault.path == "qemu" and fault.message.startswith("'/bin/ls' is no QEMU: ")
            with pytest.raises(CannotMigrate) as cannot:
                await supervisor.migrate("mover", qemu="/bin/ls")
            assert cannot.value.faults == (fault,)
            with pytest.raises(CannotMigrate) as cannot:
                async with qmpkit.receiving(kept.vm, qemu="/bin/ls"):
                    pytest.fail("it waits for a guest")
            assert cannot.value.faults == (fault,)
            await runs_on(kept, had)
        await end_all()


async def test_a_destination_that_does_not_start(qemu: str, places: Places, tmp_path: Path) -> None:
    """Its QEMU is one, and does not like what it is given: the machine runs on."""
    fickle = tmp_path / "qemu-fickle"
    told = f'case "$*" in *incoming*) echo no luck today >&2; exit 3;; esac; exec {qemu} "$@"'
    fickle.write_text(f"#!/bin/sh\n{told}\n")
    fickle.chmod(0o755)
    why = r"(?s)its destination did not start, QEMU ended with exit status 3; .*no luck today$"
    async with leaks():
        async with lab() as supervisor, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            had, pid = await runs_on(kept, 0), kept.pid
            with pytest.raises(MigrationFailed, match=why):
                await supervisor.migrate("mover", qemu=fickle)
            had = await runs_on(kept, had)
            assert kept.vm is not None and kept.pid == pid
            with pytest.raises(MigrationFailed, match=why):
                async with qmpkit.receiving(kept.vm, qemu=fickle):
                    pytest.fail("it waits for a guest")
            kept.note(spec=attrs.evolve(kept.spec, qemu=fickle))
            with pytest.raises(MigrationFailed, match=why) as failed:
                await supervisor.migrate("mover", to=to)
            said = f"machine 'mover' did not migrate and is as it was: {to}: its destination"
            assert str(failed.value).startswith(said)
            await runs_on(kept, had)
        await end_both()


async def test_a_guest_that_ends_on_its_way_has_ended_here(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """What is no guest that can run is not let run there; it is down, as one that never moved."""
    asked = trio.Event()
    unhurried = MigrationOptions(max_bandwidth="1MiB", downtime=0.001)  # done once it stands still

    def policy(_: Round) -> Step:
        asked.set()
        return Step()

    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, no_reboot=True))
            await runs_on(kept, 0)
            vm = kept.vm
            assert vm is not None

            async def end_guest() -> None:
                await asked.wait()
                await vm.execute("system_reset")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_guest)
                with pytest.raises(MigrationFailed, match="in the state 'shutdown'"):
                    await supervisor.migrate("mover", policy=policy, options=unhurried)
            await kept.until(lambda: not kept.tended)
            assert (kept.state, places.qemus()) == ("gone", [])
            assert kept.record.end is not None and kept.record.phase == "down"
        await end_all()


@pytest.mark.parametrize("fails", [False, True])
async def test_after_a_migration_it_can_be_saved(
    qemu: str, places: Places, tmp_path: Path, fails: bool
) -> None:
    """What a migration has set in QEMU, for sockets, is in no file's way."""
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            if fails:
                with pytest.raises(MigrationFailed, match="enough"):
                    await supervisor.migrate(
                        "mover", policy=lambda _: Step(give_up="enough"), options=SLOW
                    )
            else:
                await supervisor.migrate("mover")
            had, pid = await runs_on(kept, had), kept.pid
            await supervisor.save("mover")
            assert (kept.state, places.qemus()) == ("saved", [])
            assert not await trio.Path(f"/proc/{pid}").exists(), "a zombie is left"
            await supervisor.declare("mover", "running")
            await runs_on(kept, had)
        await end_all()


async def test_to_a_newer_qemu_without_a_stop(places: Places, tmp_path: Path) -> None:
    old, new = (binaries()[version] for version in QEMU_VERSIONS)
    spec = counting(old, tmp_path, nics=[UserNic(forwards=["0:22"])])
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec)
            had, vm, pid = await runs_on(kept, 0), kept.vm, kept.pid
            assert vm is not None
            ports = await vm.forwards()
            took = await supervisor.migrate("mover", qemu=new)
            assert 0 < took.downtime < took.seconds
            had = await runs_on(kept, had)
            assert kept.vm is not None and kept.vm is not vm and kept.pid != pid
            assert kept.vm.argv[0] == kept.spec.qemu == new
            assert await kept.vm.forwards() == ports
            assert len(places.qemus()) == 1
            assert (kept.record.phase, kept.end) == ("up", None)
        async with lab() as supervisor:
            kept = supervisor.kept["mover"]
            had = await runs_on(kept, had)
            assert kept.pid is not None
            await supervisor.migrate("mover", qemu=old)
            await runs_on(kept, had)
            await supervisor.declare("mover", "stopped")
            with pytest.raises(MachineGone):
                await supervisor.migrate("mover")
        await end_all()
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {1: 6})


async def test_what_does_not_move_stays(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            had, pid = await runs_on(kept, 0), kept.pid
            with pytest.raises(SpecInvalid, match="no kept machine"):
                await supervisor.migrate("nobody")
            raw = trio.Path(tmp_path / "raw.img")
            await raw.rename(tmp_path / "gone")
            with pytest.raises(CannotMigrate, match="does not exist"):
                await supervisor.migrate("mover")
            await trio.Path(tmp_path / "gone").rename(raw)
            with pytest.raises(MigrationFailed, match="enough"):
                await supervisor.migrate(
                    "mover", policy=lambda _: Step(give_up="enough"), options=SLOW
                )
            had = await runs_on(kept, had)
            with trio.CancelScope() as scope:
                await supervisor.migrate("mover", options=SLOW, progress=lambda _: scope.cancel())
            assert scope.cancelled_caught
            await runs_on(kept, had)
            assert kept.pid == pid and kept.record.heir is None and len(places.qemus()) == 1
            assert names_in(places.runtime / "lab") == [".state", "mover"]
        await end_all()


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_is_stopped_meanwhile_is_not_told_to_be_as_it_was(
    qemu: str, places: Places, tmp_path: Path, elsewhere: bool
) -> None:
    going = trio.Event()
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            await runs_on(kept, 0)

            async def move() -> None:
                with pytest.raises(MigrationFailed) as failed:
                    await here.migrate(
                        "mover",
                        to=to if elsewhere else None,
                        options=SLOW,
                        progress=lambda _: going.set(),
                    )
                assert failed.value.stopped
                said = "machine 'mover' did not migrate and is stopped: it was declared stopped"
                assert str(failed.value).startswith(said) and "start it again" in str(failed.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                await going.wait()
                await here.declare("mover", "stopped", powerdown_grace=0)
            assert (kept.state, places.qemus(), dict(there.kept)) == ("gone", [], {})
        await end_both()


@pytest.mark.bound(1200 if LONG else 120)
@pytest.mark.qemus(*OLDEST)
async def test_cancelled_anywhere_one_machine_is_left(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path), restart="never")
            had = await runs_on(kept, 0)

            async def after() -> None:
                nonlocal had
                had = await runs_on(kept, had)
                assert kept.record.heir is None and len(places.qemus()) == 1
                assert len(names_in(places.runtime / "lab")) == 2

            async def move() -> None:
                await supervisor.migrate("mover")

            await cancel_at_every_checkpoint(move, every=KEPT_MIGRATION_CANCELS, after=after)
        await end_all()


# What a move asks of both QEMUs, its entries in the journal, its processes.
PROGRAM = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.kept:Kept", "write")
step("qmpkit.process.kept:KeptChild", "keep")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        qemu, armed = lab.kept["mover"].pid, True
        await lab.migrate("mover", policy=words[0])
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.bound(120 + 60 * MIGRATION_KILLS)
@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("policy", MIGRATIONS_KILLED)
async def test_killed_between_any_two_steps(
    qemu: str, policy: str, places: Places, tmp_path: Path
) -> None:
    """One machine is left, that of before or its heir, and the guest has gone on."""
    # Postcopy is what a guest is moved by that has not arrived after one pass.
    spec = counting(qemu, tmp_path, memory=LARGE if policy == "postcopy" else ODD)
    every = 1 if MIGRATION_KILLS > 50 else 47
    async with leaks():
        async with lab() as supervisor:
            had = await runs_on(await supervisor.ensure(spec, restart="never"), 0)
        last = 1
        while await dies(PROGRAM, policy, last=last):
            last += every
            async with lab() as supervisor:
                kept = supervisor.kept["mover"]
                had = await runs_on(kept, had)
                assert kept.record.heir is None and kept.end is None
                assert len(places.qemus()) == 1
        async with lab() as supervisor:
            await runs_on(supervisor.kept["mover"], had)
        assert last > 1
        await end_all()
