"""Checkpoints of a lab: machines and the connections between them, back at one moment, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit import Kept, LaunchFailed, SpecInvalid, Supervisor
from qmpkit.farm.converge import up
from qmpkit.operations.block.fronts import Snapshots
from qmpkit.spec.farm_load import load_farm
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted, counting
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, end_all, lab
from tests.sizes import LAB_CANCELS, LAB_KILLED, NEWEST, OLDEST, REWINDS

pytestmark = [pytest.mark.live, pytest.mark.bound(180)]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
profile = "tiny-microvm"
memory = "192MiB"
networks = ["lan"]
[networks.lan]
kind = "segment"
[machines.a]
[machines.b]
requires = ["a"]
[[machines.b.disks]]
file = "{disks}/b.qcow2"
format = "qcow2"
make = "16MiB"
"""


async def told(kept: Kept, script: str) -> str:
    assert kept.vm is not None
    done = await kept.vm.agent.run(["sh", "-c", script], check=True)
    return done.text.strip()


async def came(a: Kept) -> int:
    """How many numbers have come over the connection, all in order and none left out."""
    lines = [int(line) for line in (await told(a, "cat /tmp/in")).split("\n")[:-1]]
    assert lines == list(range(1, len(lines) + 1))
    return len(lines)


async def come_on(a: Kept, more: int = 3) -> int:
    """Wait, in the guest, until so many more have come."""
    wanted = await came(a) + more
    await told(a, f"while [ $(wc -l < /tmp/in) -lt {wanted} ]; do sleep 0.1; done")
    return await came(a)


def files_in(folder: Path, *patterns: str) -> list[Path]:
    return sorted(path for it in patterns or ("*",) for path in folder.rglob(it))


@pytest.mark.qemus(*OLDEST)
async def test_a_connection_outlives_a_rewind(qemu: str, places: Places, tmp_path: Path) -> None:
    (tmp_path / "farm.toml").write_text(FARM.format(qemu=qemu, disks=tmp_path))
    async with lab() as supervisor:
        assert (await up(supervisor, load_farm(tmp_path / "farm.toml"))).went_well
        a, b = (supervisor.kept[name] for name in "ab")
        for number, kept in enumerate((a, b), 1):
            assert kept.vm is not None
            await kept.vm.agent.wait_ready()
            await told(kept, f"ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0")
        await told(a, "(tail -f /dev/null | nc -l -p 5000 > /tmp/in) > /dev/null 2>&1 & sleep 1")
        count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
        await told(b, f"(({count}) | nc 10.0.0.1 5000) > /dev/null 2>&1 & sleep 1")
        first = await come_on(a)
        point = await supervisor.checkpoint("calm", description="both talk")
        assert point.machines == ("a", "b") and 0 < point.pause < 60
        assert (await supervisor.checkpoints()) == (point,)
        later = await come_on(a)
        await told(b, "echo wrong > /tmp/it; echo x > /dev/vda; sync")
        gone = await come_on(a, later)
        for _ in range(REWINDS):  # as often as one likes
            await supervisor.rewind("calm")
            assert (a.state, b.state) == ("running", "running")
            assert first <= await came(a) < gone
            assert await come_on(a) > first
            assert await told(b, "cat /tmp/it 2> /dev/null; head -c 1 /dev/vda | tr -d '\\0'") == ""
        assert len(files_in(tmp_path, "*.qcow2")) == 2, "what was gone back from is not kept"
        await supervisor.delete_checkpoint("calm")
        assert await supervisor.checkpoints() == () and a.spec.snapshots == b.spec.snapshots == ()
        await come_on(a)
        assert files_in(places.state / "lab/checkpoints") == []
    await end_all()


async def two(qemu: str, folder: Path, supervisor: Supervisor) -> list[Kept]:
    """Two that count, each with a disk; the second requires the first."""
    made: list[Kept] = []
    for name in ("one", "two"):
        disks = folder / "disks" / name
        disks.mkdir(parents=True)
        spec = attrs.evolve(counting(qemu, disks, "qcow2"), name=name)
        requires = [it.name for it in made]
        made.append(await supervisor.ensure(spec, restart="never", requires=requires))
        await write(vm_of(made[-1]), "disk0", 0, 1)
    return made


def vm_of(kept: Kept) -> Any:
    return kept.vm


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_is_refused(qemu: str, places: Places, tmp_path: Path) -> None:
    async with lab() as supervisor:
        one, _ = await two(qemu, tmp_path, supervisor)
        with pytest.raises(SpecInvalid, match="is not a snapshot's name"):
            await supervisor.checkpoint("no name")
        await vm_of(one).snapshots.take("taken")
        with pytest.raises(SpecInvalid, match="one: it has a snapshot 'taken' already"):
            await supervisor.checkpoint("taken")
        await supervisor.declare("one", "stopped", powerdown_grace=0)
        with pytest.raises(SpecInvalid, match="one: it is gone: there is no memory"):
            await supervisor.checkpoint("now", ["one", "two"])
        assert (await supervisor.checkpoint("now")).machines == ("two",)
        with pytest.raises(SpecInvalid, match="there is a checkpoint 'now' already"):
            await supervisor.checkpoint("now")
        with pytest.raises(SpecInvalid, match=r"no checkpoint 'nwo'.*'now'"):
            await supervisor.rewind("nwo")
        await vm_of(supervisor.kept["two"]).snapshots.delete("now")
        with pytest.raises(SpecInvalid, match="there is no snapshot 'now'"):
            await supervisor.rewind("now")
        await supervisor.delete_checkpoint("now")
    await end_all()


@pytest.mark.qemus(*NEWEST)
async def test_all_or_none(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with leaks():
        async with lab() as supervisor:
            one, other = await two(qemu, tmp_path, supervisor)
            files = files_in(tmp_path / "disks")
            real = Snapshots.take

            async def failing(self: Snapshots, name: str, **words: Any) -> Any:
                if self._machine.name == "two":
                    raise LaunchFailed("two", [], None, "made up")
                return await real(self, name, **words)

            with monkeypatch.context() as patched:
                patched.setattr(Snapshots, "take", failing)
                with pytest.raises(LaunchFailed):
                    await supervisor.checkpoint("half")
            assert (one.state, other.state) == ("running", "running")
            assert one.spec.snapshots == () and await supervisor.checkpoints() == ()
            assert files_in(tmp_path / "disks") == files
            await supervisor.checkpoint("now")
            at = [await counted(vm_of(kept)) for kept in (one, other)]
            while await counted(vm_of(other)) < 3 * at[1]:
                await vm_of(other).console.expect(".")
            for kept in (one, other):
                await write(vm_of(kept), "disk0", 0, 2)
            files = files_in(tmp_path / "disks")
            at = [await counted(vm_of(kept)) for kept in (one, other)]
            (tmp_path / "disks/two/0.now.ram").rename(tmp_path / "aside")
            with pytest.raises((SpecInvalid, LaunchFailed)):
                await supervisor.rewind("now")
            (tmp_path / "aside").rename(tmp_path / "disks/two/0.now.ram")
            assert files_in(tmp_path / "disks") == files
            assert (one.state, other.state) == ("running", "running")
            assert await counted(vm_of(one)) > at[0] and await counted(vm_of(other)) > at[1]
            assert not (await supervisor.checkpoints())[0].rewinding
            await supervisor.rewind("now")
            assert await counted(vm_of(other)) < at[1]
            for kept in (one, other):
                await nothing_left(vm_of(kept))
            tops = [kept.spec.disks[0].file for kept in (one, other)]
        await end_all()
    for top in tops:
        await holds(top, "qcow2", {0: 1})


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_all_or_none(qemu: str, places: Places, tmp_path: Path) -> None:
    async with lab() as supervisor:
        machines = await two(qemu, tmp_path, supervisor)

        async def after() -> None:
            for kept in machines:
                await kept.wait_running()
                await nothing_left(vm_of(kept))
            for point in await supervisor.checkpoints():
                assert point.whole and not point.rewinding and point.name == "now"
                assert all(kept.spec.snapshot == "now" for kept in machines)
                await supervisor.delete_checkpoint("now")
            assert all(kept.spec.snapshots == () for kept in machines)
            assert len(files_in(tmp_path / "disks", "*.*")) == 2

        async def take() -> None:
            await supervisor.checkpoint("now")

        await cancel_at_every_checkpoint(take, every=LAB_CANCELS, after=after)
        await supervisor.checkpoint("now")
        files = files_in(tmp_path, "*.ram")

        async def rewind() -> None:
            await supervisor.rewind("now")

        async def still() -> None:
            for kept in machines:
                await kept.wait_running()
            assert files_in(tmp_path, "*.ram") == files
            assert len(files_in(tmp_path, "*.qcow2")) == 4

        await cancel_at_every_checkpoint(rewind, every=LAB_CANCELS, after=still)
    await end_all()


PROGRAM = (
    STEPS
    + """
step("qmpkit.operations.stillness", "save_state")
step("qmpkit.supervisor.checkpoints:Checkpoints", "write")
step("qmpkit.supervisor.shelf:Shelf", "_declare")
step("qmpkit.supervisor.keeper:Keeper", "revert")

async def main():
    global armed
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        armed = True
        await getattr(lab, words[0])("now")
        print("done", flush=True)

trio.run(main)
"""
)


async def killed(what: str, last: int) -> bool:
    """Whether a supervisor that does it died after that step, rather than ended."""
    return await dies(PROGRAM, what, last=last)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("last", LAB_KILLED)
async def test_killed_it_is_told_of(qemu: str, places: Places, tmp_path: Path, last: int) -> None:
    async with leaks():
        async with lab() as supervisor:
            await two(qemu, tmp_path, supervisor)
        died = await killed("checkpoint", last)
        async with lab() as supervisor:
            for kept in supervisor.kept.values():
                await kept.until(lambda it=kept: it.record.change is None)  # type: ignore[misc]
                await kept.wait_running()
            points = await supervisor.checkpoints()
            if died and points and not points[0].whole:
                with pytest.raises(SpecInvalid, match="delete it"):
                    await supervisor.rewind("now")
            for point in points:
                await supervisor.delete_checkpoint(point.name)
            assert len(files_in(tmp_path / "disks", "*.*")) == 2
            await supervisor.checkpoint("now")
        await killed("rewind", last)
        async with lab() as supervisor:
            await supervisor.rewind("now")
            (point,) = await supervisor.checkpoints()
            assert not point.rewinding and len(places.qemus()) == 2
            machines = [*supervisor.kept.values()]
            assert all(kept.state == "running" for kept in machines)
            assert files_in(places.state / "lab/saved") == []
            await supervisor.delete_checkpoint("now")
            for kept in machines:
                await nothing_left(vm_of(kept))
            tops = [kept.spec.disks[0].file for kept in machines]
        await end_all()
    for top in tops:
        await holds(top, "qcow2", {0: 1})
