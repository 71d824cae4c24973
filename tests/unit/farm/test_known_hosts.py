"""The keys by which ssh knows guests again go with the disks that had them, and no sooner."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from qmpkit.farm import down, up
from qmpkit.process.known_hosts import alias_of, known_hosts_in
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import lab

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIGIE0bHqHGRxVMfvjUm1PTMcXyrVKXWnkbfxQ4rOGpFc"
NO_SSH = shutil.which("ssh-keygen") is None
NAMES = ("a", "b *", "c")


@pytest.fixture
def keys(state: Path) -> Path:
    file = known_hosts_in(state)
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{alias_of(name)} ssh-ed25519 {KEY}\n" for name in NAMES))
    return file


def _lines(keys: Path) -> list[str]:
    return keys.read_text().splitlines()


async def _come_up(supervisor: Supervisor) -> None:
    assert (await up(supervisor, farm(**{name: {} for name in NAMES}))).went_well


@pytest.mark.parametrize(
    "hashed", [False, pytest.param(True, marks=pytest.mark.skipif(NO_SSH, reason="needs OpenSSH"))]
)
async def test_who_comes_by_a_name_whose_disks_are_deleted_may_have_another_key(
    keys: Path, hashed: bool
) -> None:
    if hashed:
        await trio.run_process(["ssh-keygen", "-H", "-f", str(keys)], capture_stderr=True)
    lines = _lines(keys)
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _come_up(supervisor)
        await down(supervisor)
        assert _lines(keys) == lines, "with its disks, its key stays"
        await _come_up(supervisor)
        await down(supervisor, names=["a", "b *"], delete_disks=True)
        assert _lines(keys) == [lines[2]]


async def test_given_up_half_way_those_that_are_gone_are_forgotten(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _come_up(supervisor)
        forget, gone = supervisor.forget, list[str]()
        with trio.CancelScope() as scope:

            async def given_up(name: str, *, disks: bool) -> None:
                if gone:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                await forget(name, disks=disks)
                gone.append(name)

            monkeypatch.setattr(supervisor, "forget", given_up)
            await down(supervisor, delete_disks=True)
        assert scope.cancelled_caught
        left = {alias_of(name) for name in NAMES} - {alias_of(name) for name in gone}
        assert {line.split()[0] for line in _lines(keys)} == left
        assert len(left) == 2


@pytest.fixture
def unreadable(state: Path) -> Path:
    file = known_hosts_in(state)
    file.mkdir(parents=True)
    return file


async def test_a_file_that_cannot_be_written_is_told(unreadable: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _come_up(supervisor)
        outcome = await down(supervisor, names=["a"], delete_disks=True)
        assert did(outcome) == {"a": "failed"}
        why = f"it is forgotten, and these stay: its ssh key in {unreadable} (Is a directory)"
        assert outcome.machines["a"].why == why
