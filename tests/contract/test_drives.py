"""Bounds, trays and saved RAM on a fake: who is asked what, in which order, and what if not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit import CommandRefused, Disk, IoLimits, LaunchFailed, State, TrayLocked
from qmpkit.machine.launch import launched
from qmpkit.operations.block import media
from qmpkit.operations.block.fronts import Disks
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake_commands import Refuse
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.testing.leaks import leaks
from tests.contract.conftest import faked

DRIVE = Disk(format="raw", interface="cdrom", id="cd0")
DISK = Disk("/a.raw", format="raw", limits=IoLimits(iops=5))
SPEC = MachineSpec(name="bare", accel="tcg", memory="16MiB", disks=[DISK, DRIVE])

Asked = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def disc(tmp_path: Path) -> str:
    """An image."""
    (tmp_path / "disc.iso").write_bytes(bytes(2048))
    return str(tmp_path / "disc.iso")


def drives(asked: Asked, *, locked: bool = False, refused: str = "") -> Callable[..., None]:
    """Plays a disk and a CD drive; notes what it was asked."""
    inside: dict[str, str] = {}
    tray = {"open": False}

    def blocks(_: object) -> object:
        cd: dict[str, Any] = {"qdev": "cd0", "locked": locked, "tray_open": tray["open"]}
        cd |= {"inserted": {"node-name": inside["cd0"]}} if inside else {}
        return [{"qdev": "/machine/peripheral/disk0/virtio-backend"}, cd]

    def noted(name: str, does: Callable[[dict[str, Any]], object]) -> Callable[..., object]:
        def answer(arguments: dict[str, Any]) -> object:
            asked.append((name, arguments))
            if name == refused and asked.count((name, arguments)) == 1:
                raise Refuse("not now")
            does(arguments)
            return {}

        return answer

    def open_tray(arguments: dict[str, Any]) -> None:
        tray["open"] = tray["open"] or not locked or arguments["force"]

    def prepare(machine: FakeMachine) -> None:
        machine.qemu.on("query-block", blocks)
        machine.qemu.on("x-debug-query-block-graph", lambda _: {"nodes": [], "edges": []})
        for name, does in {
            "block_set_io_throttle": lambda _: None,
            "blockdev-open-tray": open_tray,
            "blockdev-close-tray": lambda _: tray.update(open=False),
            "blockdev-remove-medium": lambda _: inside.clear(),
            "blockdev-insert-medium": lambda told: inside.update(cd0=told["node-name"]),
        }.items():
            machine.qemu.on(name, noted(name, does))

    return prepare


async def test_bounds_are_set_before_the_guest_runs() -> None:
    asked: Asked = []
    host = FakeHost(prepare=drives(asked))
    async with leaks(), launched(faked(SPEC), start=host.start) as machine:
        assert machine.state is State.PAUSED
        ((name, words),) = asked
        assert name == "block_set_io_throttle" and words["iops"] == 5
        assert words["id"] == "/machine/peripheral/disk0/virtio-backend"


async def test_bounds_that_qemu_refuses_end_the_start() -> None:
    host = FakeHost(prepare=drives([], refused="block_set_io_throttle"))
    async with leaks():
        with pytest.raises(CommandRefused, match="not now"):
            async with launched(faked(SPEC), start=host.start):
                raise AssertionError("it must not start")
    assert host.alive == []


async def test_a_locked_tray_is_waited_for_and_told(
    monkeypatch: pytest.MonkeyPatch, disc: str
) -> None:
    monkeypatch.setattr(media, "GUEST_GRACE", 0.05)
    asked: Asked = []
    host = FakeHost(prepare=drives(asked, locked=True))
    async with launched(faked(SPEC), start=host.start) as machine:
        disks = Disks(machine)
        asked.clear()
        with pytest.raises(TrayLocked, match=f"refused to insert {disc} into 'cd0'"):
            await disks.insert("cd0", disc)
        assert [name for name, _ in asked] == ["blockdev-open-tray", "blockdev-close-tray"]
        assert machine.spec == SPEC
        await disks.insert("cd0", disc, force=True)
        assert machine.spec.disks[1].file == disc


async def test_a_medium_that_does_not_go_in_leaves_the_one_before(disc: str) -> None:
    asked: Asked = []
    host = FakeHost(prepare=drives(asked, refused="blockdev-insert-medium"))
    async with launched(faked(SPEC), start=host.start) as machine:
        asked.clear()
        with pytest.raises(CommandRefused, match="not now"):
            await Disks(machine).insert("cd0", disc)
        assert machine.spec == SPEC
        done = [name.removeprefix("blockdev-") for name, _ in asked]
        emptied = ["open-tray", "remove-medium", "close-tray"]
        assert done == ["open-tray", "open-tray", "remove-medium", "insert-medium", *emptied]


async def test_a_ram_that_does_not_fit_is_a_failed_launch(tmp_path: Path) -> None:
    def prepare(machine: FakeMachine) -> None:
        qemu, process = machine.qemu, machine.process
        qemu.on("migrate-set-capabilities", lambda _: {})

        def incoming(_: object) -> object:
            process.stderr_tail = "Length mismatch: ram0"
            qemu.after_reply(lambda: process.end(1))
            return {}

        qemu.on("migrate-incoming", incoming)

    host = FakeHost(prepare=prepare)
    (tmp_path / "web.one.ram").write_bytes(b"state")
    spec = attrs.evolve(SPEC, disks=[], resume_from=tmp_path / "web.one.ram")
    async with leaks():
        with pytest.raises(LaunchFailed, match=r"(?s)Length mismatch.*go back without its memory"):
            async with launched(faked(spec), start=host.start):
                raise AssertionError("it must not start")
    assert host.alive == []
