"""A fake QEMU that saves and loads a state, and a template made of one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

import qmpkit
from qmpkit.machine.launch import launched
from qmpkit.operations import power
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.vm import VM
from tests.contract.conftest import faked

BARE = MachineSpec(name="bare", accel="tcg", memory="16MiB", vmgenid="auto")


def migrating(machine: FakeMachine, *, ends: str = "completed") -> None:
    """It migrates at once, and that *ends* so."""
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
        for status in ("active", ends):
            qemu.after_reply(partial(enter, status))
        return {}

    qemu.on("query-migrate", lambda _: dict(migration))
    qemu.on("query-migrate-parameters", lambda _: {"max-bandwidth": 128 << 20})
    for command in ("migrate-set-parameters", "migrate-set-capabilities", "migrate_cancel"):
        qemu.on(command, lambda _: {})
    qemu.on("migrate", migrate)
    qemu.on("migrate-incoming", migrate)


@asynccontextmanager
async def booted(host: FakeHost, place: Path) -> AsyncIterator[VM]:
    """A fake that runs, its RAM in a file beside *place*."""
    spec = qmpkit.templating(BARE, place)
    resolution = faked(attrs.evolve(spec, machine="pc-q35-7.2"))
    await trio.Path(f"{place}.ram").write_bytes(b"\0" * 4096)
    async with launched(resolution, start=host.start) as machine:
        await power.resume(machine)
        yield VM(machine)


async def template_at(host: FakeHost, place: Path) -> qmpkit.Template:
    async with booted(host, place) as vm:
        return await vm.to_template(place, twins=True)
