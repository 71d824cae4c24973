"""Files of a guest that are read and written part by part."""

from __future__ import annotations

import os

import pytest
from trio.testing import MockClock

from qmpkit.operations import agent_files
from qmpkit.operations.agent import Agent
from qmpkit.operations.errors import AgentRefused
from qmpkit.qmp.errors import MonitorGarbled
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.unit.operations.guest import agent_alone, agent_of_a_machine

CHUNK = agent_files._CHUNK


async def test_parts_there_and_back() -> None:
    parts = [os.urandom(size) for size in (CHUNK + 1, 0, 7, CHUNK)]
    async with agent_alone() as (agent, guest):
        async with agent.writing("/x") as out:
            for part in parts:
                await out.write(part)
        async with agent.writing("/x", append=True) as out:
            await out.write(memoryview(b"end"))
        wanted = b"".join(parts) + b"end"
        assert guest.files["/x"] == wanted
        async with agent.reading("/x") as file:
            assert await file.size() == len(wanted)
            got = await file.read()
            assert len(got) == CHUNK
            while part := await file.read():
                got += part
            assert (got, await file.read()) == (wanted, b"")
        assert guest.handles == {}


async def test_what_has_no_size_and_what_is_not_there() -> None:
    async with agent_alone() as (agent, guest):
        guest.files["/pipe"] = b"12"
        async with agent.reading("/pipe") as file:
            assert (await file.size(), await file.read()) == (None, b"12")
        with pytest.raises(AgentRefused, match="refused to read '/nope'"):
            async with agent.reading("/nope"):
                pytest.fail("it was opened")
        with pytest.raises(KeyError):
            async with agent.writing("/x"):
                raise KeyError
        assert guest.handles == {}


async def test_cancelled_anywhere_leaves_no_handle(autojump_clock: MockClock) -> None:
    async with agent_of_a_machine() as (agent, guest, _):
        guest.files["/there"] = b"data"

        async def use(agent: Agent = agent) -> None:
            async with agent.reading("/there") as file, agent.writing("/x") as out:
                await file.size()
                while part := await file.read():
                    await out.write(part)

        async def nothing_left() -> None:
            assert guest.handles == {}

        await cancel_at_every_checkpoint(use, after=nothing_left)


@pytest.mark.parametrize("handle", [float("nan"), float("inf"), None, "x", []])
async def test_a_handle_that_is_no_number_is_not_asked_for_again(handle: object) -> None:
    """Nor when it would be closed, which ended the link and the machine."""
    async with agent_of_a_machine() as (agent, guest, _):
        guest.fake.on("guest-file-open", lambda _: handle)
        guest.fake.on("guest-exec", lambda _: {"pid": handle})
        with pytest.raises(MonitorGarbled, match="guest-file-open is malformed"):
            await agent.read_file("/x")
        with pytest.raises(MonitorGarbled, match="guest-exec is malformed"):
            await agent.run(["cat"])
        await agent.ping()
