"""What a person reads of a start that failed: QEMU's words, and not its command, a screenful."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qmpkit.errors import LaunchFailed
from qmpkit.server.answers import error_body
from qmpkit.spec.restart import Restart
from qmpkit.testing.fake_kept import FakeKept
from tests.unit.server.conftest import served
from tests.unit.supervisor.conftest import spec

WHY = "QEMU ended with exit status 1.\n-nonsense: invalid option"


def fail(_: FakeKept) -> None:
    raise LaunchFailed("a", ("qemu-system", "-device", "x" * 100), "exit status 1", WHY[31:])


def test_an_answer_says_where_the_command_is() -> None:
    with pytest.raises(LaunchFailed) as caught:
        fail(None)  # type: ignore[arg-type]
    assert error_body(caught.value)["message"] == (
        f"machine 'a' did not start: {WHY}\n(The daemon's log has QEMU's command.)"
    )


async def test_the_cause_of_a_start_that_is_asked_for(state: Path) -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))
        await daemon.lab.declare("a", "stopped")
        daemon.ground.prepare = fail
        job = await daemon.client.done("POST", "/v1/machines/a/start")
        assert "-device" not in job["error"]["message"]
        _, machine = await daemon.client.ask("GET", "/v1/machines/a")
        assert machine["cause"] == f"it did not start: {WHY}"


async def test_the_cause_of_one_that_the_policy_asks_for_and_the_log_has_the_command(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as daemon:
        kept = await daemon.lab.ensure(spec("a"), restart=Restart(policy="always", delay=0.01))
        daemon.ground.prepare = fail
        with caplog.at_level(logging.WARNING, "qmpkit.supervisor"):
            daemon.ground["a"].end(1)
            await kept.until(lambda: "it did not start" in kept.cause)
        assert kept.cause.startswith(f"it did not start: {WHY}; it starts again in ")
        assert "Command: qemu-system -device xxx" in caplog.text
        await daemon.lab.declare("a", "stopped")
