"""A template that is being saved or loaded, cancelled anywhere, on a fake."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from qmpkit.machine.launch import LaunchOptions, launched
from qmpkit.operations import power, template
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.testing.leaks import leaks
from tests.contract.conftest import faked

BARE = MachineSpec(name="bare", accel="tcg", memory="16MiB")


@pytest.fixture
def host() -> FakeHost:
    """Its machines migrate at once."""
    return FakeHost(prepare=_migrating)


def _migrating(machine: FakeMachine) -> None:
    qemu = machine.qemu
    migration = {"status": "none"}

    def enter(status: str) -> None:
        migration["status"] = status
        qemu.emit("MIGRATION", {"status": status})

    def migrate(arguments: dict[str, object]) -> object:
        kind, _, name = str(arguments["uri"]).partition(":")
        assert kind == "fd"
        os.close(qemu.named_fds.pop(name))  # it is the migration's now
        enter("setup")
        for status in ("active", "completed"):
            qemu.after_reply(partial(enter, status))
        return {}

    qemu.on("query-migrate", lambda _: dict(migration))
    qemu.on("query-migrate-parameters", lambda _: {"max-bandwidth": 128 << 20})
    for command in ("migrate-set-parameters", "migrate-set-capabilities", "migrate_cancel"):
        qemu.on(command, lambda _: {})
    qemu.on("migrate", migrate)
    qemu.on("migrate-incoming", migrate)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_save_at_every_checkpoint(host: FakeHost, tmp_path: Path) -> None:
    saved: list[template.Template] = []

    def check() -> None:
        """All of a template or nothing; that the next run succeeds says the rest."""
        assert template.read_template(tmp_path) == (saved[0] if saved else None)

    async with (
        leaks(),
        launched(faked(template.template_spec(BARE, tmp_path)), start=host.start) as machine,
    ):
        await power.resume(machine)

        async def save() -> None:
            saved.append(await template.save_template(machine, tmp_path))

        async with leaks():
            cancelled = await cancel_at_every_checkpoint(save, after=check)
    assert cancelled > 8
    assert saved
    assert _names(tmp_path) == {template.STATE, template.SPEC}


async def test_a_load_at_every_checkpoint(host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / template.STATE).write_bytes(b"state")
    saved = template.Template(tmp_path, template.template_spec(BARE, tmp_path))
    resolution = faked(template.clone_spec(saved))
    options = LaunchOptions(incoming=True)

    async def life() -> None:
        async with launched(resolution, options, start=host.start) as machine:
            await template.load_template(machine, saved)
            await power.resume(machine)

    def check() -> None:
        assert not host.alive
        assert host["bare"].process.signals == []  # ended in order
        assert (tmp_path / template.STATE).read_bytes() == b"state"

    async with leaks():
        await trio.to_thread.run_sync(lambda: None)  # trio keeps its thread: not a leak of ours
        cancelled = await cancel_at_every_checkpoint(life, after=check)
    assert cancelled > 12
