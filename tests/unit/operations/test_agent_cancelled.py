"""Calls of the guest agent that are cancelled, and what is left of them in the guest."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from qmpkit.operations.agent import Agent
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import Late
from tests.unit.operations.guest import agent_alone, agent_of_a_machine

Use = Callable[[Agent], Coroutine[Any, Any, object]]
USES: list[Use] = [
    lambda agent: agent.run(["cat"], input=b"x"),
    lambda agent: agent.read_file("/there"),
    lambda agent: agent.write_file("/x", b"12345"),
]


@pytest.mark.parametrize("use", USES, ids=["run", "read_file", "write_file"])
async def test_cancelled_anywhere_leaves_nothing_and_the_agent_usable(
    use: Use, autojump_clock: MockClock
) -> None:
    async with agent_of_a_machine() as (agent, guest, _):
        guest.files["/there"] = b"data"
        guest.largest_write = 2

        async def nothing_left() -> None:
            assert guest.handles == {}
            assert all("ended" in program.path for program in guest.programs.values())
            assert (await agent.run(["cat"], input=b"alive")).stdout == b"alive"

        assert await cancel_at_every_checkpoint(lambda: use(agent), after=nothing_left) >= 3


@pytest.mark.parametrize("slow", ["guest-file-open", "guest-file-read", "guest-file-close"])
async def test_a_guest_that_is_slow_is_tidied_behind_the_callers_back(
    slow: str, autojump_clock: MockClock
) -> None:
    async with agent_alone() as (agent, guest):
        guest.files["/there"] = b"data"
        guest.fake.misbehave(slow, Late(20))
        with trio.move_on_after(5):
            await agent.read_file("/there")
        assert trio.current_time() < 7
        await trio.sleep(20)
        assert guest.handles == {}


async def test_a_program_that_starts_late_is_killed_though_nobody_waits(
    autojump_clock: MockClock,
) -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.misbehave("guest-exec", Late(20))
        with trio.move_on_after(5):
            await agent.run(["sleep"])
        assert trio.current_time() < 7
        await trio.sleep(20)
        assert {program.path for program in guest.programs.values()} == {
            "(sleep has ended)",
            "(kill has ended)",
        }


async def test_an_agent_that_garbles_while_one_tidies_up_ends_nothing(
    autojump_clock: MockClock,
) -> None:
    async with agent_alone() as (agent, guest):
        scope = trio.move_on_after(10)

        def status(request: dict[str, Any]) -> Any:
            return ["none"] if scope.cancel_called else guest.do_exec_status(request)

        guest.fake.on("guest-exec-status", status)
        with scope:
            await agent.run(["sleep"])
        guest.fake.on("guest-exec-status", guest.do_exec_status)
        assert (await agent.run(["cat"], input=b"alive")).stdout == b"alive"
