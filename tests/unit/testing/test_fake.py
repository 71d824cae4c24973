"""FakeQemu plays a whole QEMU by default: its run states, its clients one at a time, its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from qmpkit.qmp.errors import CommandRefused, MonitorLost, MonitorSilent
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import FakeQemu, Refuse, fake_qemu


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[FakeQemu, Session]]:
    async with fake_qemu() as fake, open_session(fake.dial(), name="vm") as qmp:
        yield fake, qmp


async def _names(qmp: Session, fake: FakeQemu, command: str) -> list[str]:
    """The events that *command* brings."""
    with qmp.subscribe() as events:
        await qmp.execute(command)
        fake.emit("MARK")
        names = []
        while (event := await events.next()).name != "MARK":
            names.append(event.name)
        return names


async def test_its_run_states() -> None:
    async with pair() as (fake, qmp):
        assert fake.status == "prelaunch"
        assert await _names(qmp, fake, "cont") == ["RESUME"]
        assert await _names(qmp, fake, "cont") == []
        assert await _names(qmp, fake, "stop") == ["STOP"]
        assert await _names(qmp, fake, "system_reset") == ["RESET"]
        assert fake.status == "paused"


async def test_a_guest_that_obeys_the_power_button_ends_it() -> None:
    async with pair() as (fake, qmp):
        await qmp.execute("cont")
        with qmp.subscribe() as events:
            await qmp.execute("system_powerdown")
            assert [(await events.next()).name for _ in range(2)] == ["POWERDOWN", "SHUTDOWN"]
        assert isinstance(await qmp.wait_lost(), MonitorLost)
        await fake.ended.wait()
        assert fake.exit_code == 0


async def test_a_guest_that_does_not_obey_runs_on() -> None:
    async with pair() as (fake, qmp):
        fake.obeys_powerdown = False
        await qmp.execute("cont")
        assert await _names(qmp, fake, "system_powerdown") == ["POWERDOWN"]
        assert fake.status == "running"


async def test_shutdown_can_pause_and_a_panic_does() -> None:
    async with pair() as (fake, qmp):
        fake.pauses_on_shutdown = True
        await qmp.execute("cont")
        with qmp.subscribe() as events:
            fake.guest_shutdown()
            assert [(await events.next()).name for _ in range(2)] == ["SHUTDOWN", "STOP"]
            assert fake.status == "shutdown"
            with pytest.raises(CommandRefused):
                await qmp.execute("cont")
            fake.guest_panic()
            assert [(await events.next()).name for _ in range(2)] == ["GUEST_PANICKED", "STOP"]
            fake.guest_reset()
            assert (await events.next()).data == {"guest": True, "reason": "guest-reset"}
        assert fake.status == "guest-panicked"


async def test_a_crash_ends_it_without_a_word() -> None:
    async with pair() as (fake, qmp):
        with qmp.subscribe() as events:
            fake.crash()
            with pytest.raises(MonitorLost):
                await events.next()
        assert fake.ended.is_set()
        assert fake.exit_code is None


async def test_it_serves_one_client_at_a_time(autojump_clock: MockClock) -> None:
    async with fake_qemu() as fake:
        async with open_session(fake.dial(), name="first"):
            with pytest.raises(MonitorSilent):
                async with open_session(fake.dial(), name="second", greeting_timeout=5):
                    raise AssertionError
            waiting = fake.dial()
        async with open_session(waiting, name="third") as qmp:
            assert await qmp.execute("query-status")


async def test_before_negotiation_only_that_is_understood() -> None:
    async with fake_qemu() as fake:
        stream = fake.dial()
        assert b'"QMP"' in await stream.receive_some()
        await stream.send_all(b'{"execute": "query-status"}\n')
        assert b"CommandNotFound" in await stream.receive_some()
        await stream.send_all(b"nonsense\n")
        assert b"JSON parse error" in await stream.receive_some()
        await stream.aclose()


async def test_handlers_are_values_functions_and_coroutines() -> None:
    async def slow(arguments: dict[str, int]) -> int:
        await trio.lowlevel.checkpoint()
        return arguments["n"] + 1

    def refuse(_: object) -> None:
        raise Refuse("no", "DeviceNotFound")

    async with pair() as (fake, qmp):
        fake.on("value", [1, 2])
        fake.on("slow", slow)
        fake.on("refuse", refuse)
        assert await qmp.execute("value") == [1, 2]
        assert await qmp.execute("slow", {"n": 1}) == 2
        with pytest.raises(CommandRefused) as refused:
            await qmp.execute("refuse")
        assert refused.value.error_class == "DeviceNotFound"


async def test_called_waits_for_the_command() -> None:
    async with pair() as (fake, qmp), trio.open_nursery() as nursery:
        seen = trio.Event()

        async def watch() -> None:
            await fake.called("query-status", times=2)
            seen.set()

        nursery.start_soon(watch)
        await qmp.execute("query-status")
        await wait_all_tasks_blocked()
        assert not seen.is_set()
        await qmp.execute("query-status")
        await seen.wait()


async def test_descriptors_are_named_and_grouped_and_closed() -> None:
    async with fake_qemu() as fake, open_session(fake.dial("socket"), name="vm") as qmp:
        await qmp.execute("getfd", {"fdname": "a"}, fds=[0])
        await qmp.execute("getfd", {"fdname": "a"}, fds=[0])  # replaces
        added = await qmp.execute("add-fd", {"fdset-id": 7}, fds=[0])
        assert added["fdset-id"] == 7
        await qmp.execute("remove-fd", {"fdset-id": 7})
        with pytest.raises(CommandRefused):
            await qmp.execute("remove-fd", {"fdset-id": 7})
        with pytest.raises(CommandRefused):
            await qmp.execute("getfd", {"fdname": "b"})
        await qmp.execute("closefd", {"fdname": "a"})
        assert not fake.named_fds
