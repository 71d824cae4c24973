"""Taking a farm down with its disks: what somebody else has open stays, and all is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import pytest
import trio

from qmpkit import Disk, images
from qmpkit.farm import down, leave, needed, plan_up, up
from qmpkit.farm.leave import Loss, disks_to_delete, lost_by_down
from qmpkit.host.chain import Chain, walk_chain
from qmpkit.host.holders import deny_writing
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_plan import ChangeLive, Remove
from qmpkit.spec.saved import MEMORY
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


def _with_disk(disk: Path) -> Farm:
    made = {"file": str(disk), "format": "raw", "make": "1MiB"}
    return farm(a={"disks": [made]}, b={})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    """A disk as the QEMU of another farm has it open."""
    fd = os.open(tmp_path / "a.raw", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def test_a_disk_that_another_farms_machine_has_open_stays(
    tmp_path: Path, opened: int
) -> None:
    disk = tmp_path / "a.raw"
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        deny_writing(opened)
        outcome = await down(supervisor, delete_disks=True)
        assert did(outcome) == {"a": "failed", "b": "removed"}
        why = outcome.machines["a"].why
        assert f"not forgotten: cannot delete '{disk}'" in why
        assert f"pid {os.getpid()}" in why
        assert (disk.exists(), list(supervisor.kept)) == (True, ["a"])
        assert (await down(supervisor)).went_well  # which leaves it there


async def test_a_disk_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        disk.unlink()
        disk.mkdir()
        outcome = await down(supervisor, names=["a"], delete_disks=True)
        assert outcome.machines["a"].why == (
            f"it is forgotten, and these stay: {disk} (Is a directory)"
        )
        assert list(supervisor.kept) == ["b"]


async def test_a_base_stays_that_is_only_named_by_images_or_by_another_name(
    tmp_path: Path,
) -> None:
    """As after a snapshot: the layer above has no `make` that would name what is below."""
    base, top, link = tmp_path / "base.qcow2", tmp_path / "top.qcow2", tmp_path / "link"
    made = {"file": str(base), "format": "qcow2", "make": "1MiB"}
    link.symlink_to(tmp_path)
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={"disks": [made]}))
        await images.overlay(top, base, "qcow2")
        for disk in (Disk(top, format="qcow2"), Disk(link / base.name, format="qcow2")):
            kept = await supervisor.ensure(attrs.evolve(spec("own"), disks=[disk]))
            assert await disks_to_delete(supervisor, ["a"]) == {"a": []}
            await supervisor.declare(kept.name, "stopped")
            await supervisor.forget(kept.name)
        await supervisor.ensure(attrs.evolve(spec("own"), disks=[Disk(top, format="qcow2")]))
        assert (await down(supervisor, delete_disks=True)).machines["a"].why == ""
        assert base.exists()


async def test_what_is_below_the_base_of_a_disk_that_is_not_made_yet_stays(tmp_path: Path) -> None:
    """Its machine was held back, or could not start: its disk is to be made at the next start."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    made = {"file": str(base), "format": "qcow2", "make": "1MiB"}
    overlay = {"file": str(top), "format": "qcow2"}
    waits = {"file": str(tmp_path / "b.qcow2"), "format": "qcow2", "make": overlay}
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={"disks": [made]}))
        await images.overlay(top, base, "qcow2")
        await up(supervisor, farm(a={"disks": [made]}, b={"disks": [waits]}))
        await supervisor.declare("b", "stopped")
        (tmp_path / "b.qcow2").unlink()
        assert await disks_to_delete(supervisor, ["a"]) == {"a": []}
        assert (await down(supervisor, names=["a"], delete_disks=True)).machines["a"].why == ""
        assert base.exists()


async def test_the_images_of_each_machine_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"file": f"{tmp_path}/{{name}}.raw", "format": "raw", "make": "1MiB"}
    looked: list[str] = []

    def counted(path: Path, format: str | None) -> Chain:
        looked.append(path.name)
        return walk_chain(path, format)

    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(goes={"count": 4, "disks": [table]}, stays={"disks": [table]}))
        monkeypatch.setattr(needed, "walk_chain", counted)
        going = [f"goes{n}" for n in range(1, 5)]
        outcome = await down(supervisor, names=going, delete_disks=True)
        assert {it.why for it in outcome.machines.values()} == {
            f"deleted {tmp_path}/{name}.raw" for name in going
        }
        assert list(supervisor.kept) == ["stays"]
    assert len(looked) == len(set(looked))


async def test_that_a_saved_one_does_not_go_on_is_told_before_and_after(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}, b={}))
        await supervisor.declare("a", "stopped")
        a, memory = supervisor.kept["a"], state / "saved" / "a" / MEMORY
        memory.parent.mkdir(parents=True)
        memory.touch()
        a.note(spec=attrs.evolve(a.spec, resume_from=str(memory)))
        assert await lost_by_down(supervisor) == {"a": Loss(memory=True), "b": Loss()}
        assert await lost_by_down(supervisor, ["b"], delete_disks=True) == {"b": Loss()}
        first, second, _ = (await plan_up(supervisor, farm(c={}))).steps
        assert {first, second} == {
            Remove("a", running=False, saved=True),
            Remove("b", running=True),
        }
        await _is_refused_another_spec(supervisor)
        outcome = await down(supervisor)
        assert outcome.machines["a"].why == "what it was saved with is discarded"
        assert outcome.machines["b"].why == ""


async def _is_refused_another_spec(supervisor: Supervisor) -> None:
    """*a*, which is saved; but not what is the supervisor's own matter."""
    wanted = farm(a={"memory": "1GiB"}, b={})
    first, _ = (await plan_up(supervisor, wanted)).steps
    assert isinstance(first, ChangeLive) and first.saved
    why = (await up(supervisor, wanted)).machines["a"].why
    assert "what it was saved with fits no other spec" in why
    first, _ = (await plan_up(supervisor, farm(a={"restart": {"policy": "always"}}, b={}))).steps
    assert isinstance(first, ChangeLive) and not first.saved


async def test_a_snapshot_that_one_goes_on_from_stays(tmp_path: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}))
        await supervisor.declare("a", "stopped")
        a = supervisor.kept["a"]
        a.note(spec=attrs.evolve(a.spec, resume_from=str(tmp_path / "a.s1.ram")))
        assert await lost_by_down(supervisor) == {"a": Loss()}
        assert (await down(supervisor)).machines["a"].why == ""


async def test_what_is_forgotten_as_down_is_cancelled_takes_its_disks_along(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, keys = tmp_path / "a.raw", state / "known_hosts"
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        keys.write_text("a ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n")
        forget = supervisor.forget
        with trio.CancelScope() as scope:

            async def forgotten(name: str, *, disks: bool) -> None:
                await forget(name, disks=disks)
                scope.cancel()

            monkeypatch.setattr(supervisor, "forget", forgotten)
            await down(supervisor, names=["a"], delete_disks=True)
        assert scope.cancelled_caught
        assert (list(supervisor.kept), disk.exists()) == (["b"], False)
        assert keys.read_text() == "b ssh-ed25519 BBBB\n"


async def test_a_disk_that_gives_no_answer_holds_up_a_cancellation_no_longer_than_a_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, answers = tmp_path / "a.raw", threading.Event()
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        monkeypatch.setattr(leave, "STEP_GRACE", 0.05)
        with trio.CancelScope() as scope, trio.fail_after(30):

            def stuck(files: Iterable[str]) -> tuple[list[str], list[str]]:
                trio.from_thread.run_sync(scope.cancel)
                answers.wait(60)
                return [], []

            monkeypatch.setattr(leave, "unlink_all", stuck)
            await down(supervisor, names=["a"], delete_disks=True)
        answers.set()
        assert scope.cancelled_caught
        assert "machine 'a' is forgotten, and these may stay: " in caplog.text
        assert str(disk) in caplog.text
