"""A machine that is being changed: who asks for another change of it is told so at once."""

from __future__ import annotations

import pytest
import trio

from tests.unit.server.conftest import served
from tests.unit.supervisor.conftest import spec

pytestmark = pytest.mark.usefixtures("state")

CHANGES = [
    ("POST", "tune", {"resources": {"nice": 3}}),
    ("POST", "devices", {"kind": "rng"}),
    ("DELETE", "devices/rng0", None),
    ("POST", "devices/nic0/link", {"up": True}),
    ("POST", "cpus", {"count": 1}),
    ("DELETE", "cpus/cpu1", None),
    ("POST", "memory", {"size": "128MiB"}),
    ("POST", "memory/balloon", {"size": "128MiB"}),
    ("POST", "memory/resize", {"size": "128MiB"}),
    ("DELETE", "memory/dimm0", None),
]


async def test_no_change_waits_for_another() -> None:
    async with served() as daemon:
        kept = await daemon.lab.ensure(spec("a"))
        assert kept.vm is not None
        async with kept.vm.machine.changing:
            for method, path, body in CHANGES:
                with trio.fail_after(10):
                    asked = await daemon.client.ask(method, f"/v1/machines/a/{path}", body)
                status, said = asked
                words = "machine 'a' is being changed: ask again"
                assert (status, said["error"]["message"]) == (409, words), path
        await daemon.lab.declare("a", "stopped")
        for method, path, body in CHANGES:
            status, said = await daemon.client.ask(method, f"/v1/machines/a/{path}", body)
            assert (status, "change its spec instead" in said["error"]["message"]) == (409, True)


async def test_no_change_waits_for_a_move() -> None:
    """Disks are asked for at once too, though else a job of theirs waits for another."""
    more = [
        *CHANGES,
        ("POST", "disks/disk0/resize", {"size": "1GiB"}),
        ("POST", "snapshots/now/rename", {"to": "then"}),
    ]
    async with served() as daemon:
        kept = await daemon.lab.ensure(spec("a"))
        assert kept.vm is not None
        async with kept.vm.machine.changing.moving("another QEMU"):
            for method, path, body in more:
                with trio.fail_after(10):
                    asked = await daemon.client.ask(method, f"/v1/machines/a/{path}", body)
                status, said = asked
                assert (status, said["error"]["kinds"][0]) == (409, "MachineMoving"), path
                assert "'a' is moving to another QEMU" in said["error"]["message"]
