"""The guest agent's dialect, over a guest that reboots, stalls and talks nonsense."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qmpkit.errors import HostLacks
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import FakeQemu, Garbage, Late, Lost, Refuse, fake_qemu

SYNC = "guest-sync-delimited"


@asynccontextmanager
async def pair(greeting_timeout: float = 10) -> AsyncIterator[tuple[FakeQemu, Session]]:
    async with (
        fake_qemu(kind="agent") as fake,
        open_session(
            fake.dial(), name="vm", kind="agent", greeting_timeout=greeting_timeout
        ) as agent,
    ):
        yield fake, agent


def _asked(fake: FakeQemu) -> list[str]:
    return [call.command for call in fake.calls]


async def test_a_sync_is_the_handshake_and_nothing_carries_an_id() -> None:
    async with pair() as (fake, agent):
        assert agent.greeting is None
        assert await agent.execute("guest-ping") == {}
        assert (await agent.execute("guest-info"))["version"] == "7.2.0"
        assert _asked(fake) == [SYNC, "guest-ping", "guest-info"]
        assert all(call.ident is None for call in fake.calls)


async def test_refusals_are_typed_and_need_no_new_sync() -> None:
    def refuse(_: object) -> None:
        raise Refuse("disabled: the agent is in frozen state", "CommandNotFound")

    async with pair() as (fake, agent):
        fake.on("guest-exec", refuse)
        with pytest.raises(CommandRefused, match="frozen"):
            await agent.execute("guest-exec", {"path": "x"})
        await agent.execute("guest-ping")
        assert _asked(fake).count(SYNC) == 1


async def test_commands_wait_for_each_other() -> None:
    async with pair() as (fake, agent):
        fake.on("guest-echo", lambda arguments: arguments["n"])
        got: dict[int, int] = {}

        async def ask(n: int) -> None:
            got[n] = await agent.execute("guest-echo", {"n": n})

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(ask, n)
        assert got == {n: n for n in range(20)}


async def test_an_absent_agent_is_bounded_at_the_handshake(autojump_clock: MockClock) -> None:
    async with fake_qemu(kind="agent", silent=True) as fake:
        with pytest.raises(MonitorSilent, match="qemu-guest-agent"):
            async with open_session(fake.dial(), name="vm", kind="agent", greeting_timeout=5):
                raise AssertionError


async def test_without_a_handshake_the_first_command_syncs(autojump_clock: MockClock) -> None:
    async with pair(greeting_timeout=0) as (fake, agent):
        fake.silent = True  # the guest has not booted
        with trio.move_on_after(5):
            await agent.execute("guest-ping")
        fake.silent = False
        assert await agent.execute("guest-ping") == {}
        assert _asked(fake) == [SYNC, SYNC, "guest-ping"]


@pytest.mark.parametrize("plan", [Lost(), Late(3), Late(20)], ids=str)
async def test_after_a_cancelled_command_the_place_is_found_again(
    plan: Late | Lost, autojump_clock: MockClock
) -> None:
    async with pair() as (fake, agent):
        fake.on("guest-first", "first")
        fake.on("guest-second", "second")
        fake.misbehave("guest-first", plan)
        with trio.move_on_after(2):
            await agent.execute("guest-first")
        assert await agent.execute("guest-second") == "second"
        await trio.sleep(25)  # the late reply comes where nobody waits
        assert await agent.execute("guest-second") == "second"
        assert _asked(fake).count(SYNC) == 2


async def test_a_late_reply_before_the_sync_answer_is_dropped(autojump_clock: MockClock) -> None:
    async with pair() as (fake, agent):
        fake.on("guest-first", "first")
        fake.on("guest-second", "second")
        fake.misbehave("guest-first", Late(3))
        fake.misbehave(SYNC, Late(5))
        with trio.move_on_after(1):
            await agent.execute("guest-first")
        assert await agent.execute("guest-second") == "second"


async def test_an_abandoned_sync_does_not_answer_a_later_one(autojump_clock: MockClock) -> None:
    async with pair(greeting_timeout=0) as (fake, agent):
        fake.misbehave(SYNC, Late(3), Late(6))
        with trio.move_on_after(1):
            await agent.execute("guest-ping")
        assert await agent.execute("guest-ping") == {}


async def test_torn_text_of_before_is_thrown_away_at_the_delimiter() -> None:
    async with pair(greeting_timeout=0) as (fake, agent):
        await trio.testing.wait_all_tasks_blocked()
        fake.send_raw(b'{"return": {"pid"')  # an agent that was killed while it spoke
        assert await agent.execute("guest-ping") == {}


@pytest.mark.parametrize("said", [b"kernel panic\n", b"\x00\x80\n", b"[1]\n"], ids=repr)
async def test_garbage_fails_its_command_and_the_session_recovers(said: bytes) -> None:
    async with pair() as (fake, agent):
        fake.misbehave("guest-ping", Garbage(said))
        with pytest.raises(MonitorGarbled):
            await agent.execute("guest-ping")
        assert agent.lost is None
        assert await agent.execute("guest-ping") == {}
        assert _asked(fake).count(SYNC) == 2


async def test_noise_while_nobody_asks_is_ignored() -> None:
    async with pair() as (fake, agent):
        fake.send_raw(b'getty: hello\n{"return": {"stale": true}}\n')
        await trio.testing.wait_all_tasks_blocked()
        assert await agent.execute("guest-ping") == {}


async def test_the_streams_end_is_a_lost_monitor() -> None:
    async with pair() as (fake, agent):
        fake.hang_up()
        with pytest.raises(MonitorLost):
            await agent.execute("guest-ping")
        assert isinstance(await agent.wait_lost(), MonitorLost)
        with pytest.raises(MonitorLost):
            await agent.execute("guest-ping")


async def test_no_descriptors_and_no_oob() -> None:
    async with pair() as (_, agent):
        with pytest.raises(HostLacks):
            await agent.execute("guest-ping", fds=[0])
        with pytest.raises(HostLacks):
            await agent.execute("guest-ping", oob=True)


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_anywhere_the_session_stays_usable(steps: int) -> None:
    async with pair(greeting_timeout=0) as (fake, agent):
        fake.on("guest-echo", lambda arguments: arguments)

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                await agent.execute("guest-echo", {"n": 1})

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(ask, scope)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert await agent.execute("guest-echo", {"n": 2}) == {"n": 2}
