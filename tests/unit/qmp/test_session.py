"""The session against the fake: each way a stream can go wrong has its own outcome."""

from __future__ import annotations

import socket
import time
from itertools import pairwise
from typing import Any

import pytest
import qemu.qmp
import qemu.qmp.error
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from qmpkit.errors import HostLacks
from qmpkit.qmp.errors import (
    CommandRefused,
    MonitorGarbled,
    MonitorLost,
    MonitorMisread,
    MonitorSilent,
    MonitorTorn,
)
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import (
    Duplicated,
    Flooding,
    Garbage,
    HalfSent,
    HangUp,
    Late,
    Lost,
    ParseError,
    Refuse,
    Silent,
    fake_qemu,
)
from tests.unit.qmp.sessions import OVERS, Over, pair


@pytest.fixture(params=OVERS)
def over(request: pytest.FixtureRequest) -> Any:
    return request.param


async def _expect_end(qmp: Session, kind: type[Exception]) -> None:
    """The session has ended so, and says so at once to everybody who asks for more."""
    assert type(qmp.lost) is kind
    assert await qmp.wait_lost() is qmp.lost
    with pytest.raises(kind) as again:
        await qmp.execute("query-status")
    assert again.value is not qmp.lost
    with pytest.raises(kind), qmp.subscribe():
        pass


# --- obedience


async def test_commands_and_refusals(over: Over) -> None:
    async with pair(over) as (fake, qmp):
        assert qmp.oob
        assert qmp.greeting is not None
        assert (await qmp.execute("query-status"))["status"] == "prelaunch"
        fake.on("device_add", lambda _: _refuse("Bus not found", "DeviceNotFound"))
        with pytest.raises(CommandRefused) as refused:
            await qmp.execute("device_add", {"driver": "x"})
        assert refused.value.error_class == "DeviceNotFound"
        assert refused.value.command == "device_add"
        assert refused.value.arguments == {"driver": "x"}
        assert isinstance(refused.value, qemu.qmp.ExecuteError)
        assert str(refused.value) == (
            "machine 'vm' refused device_add: Bus not found [DeviceNotFound]"
        )
        assert (await qmp.execute("query-status"))["status"] == "prelaunch"


def _refuse(desc: str, error_class: str) -> None:
    raise Refuse(desc, error_class)


async def test_many_commands_at_once_each_get_their_own_reply(over: Over) -> None:
    async with pair(over) as (fake, qmp):
        fake.on("echo", lambda arguments: arguments["n"])
        got: dict[int, int] = {}

        async def ask(n: int) -> None:
            got[n] = await qmp.execute("echo", {"n": n})

        async with trio.open_nursery() as nursery:
            for n in range(300):
                nursery.start_soon(ask, n)
        assert got == {n: n for n in range(300)}


async def test_replies_out_of_order_find_their_waiters(autojump_clock: MockClock) -> None:
    async with pair() as (fake, qmp):
        fake.misbehave("slow", Late(5))
        fake.on("slow", "slow")
        order: list[str] = []

        async def ask(command: str) -> None:
            await qmp.execute(command)
            order.append(command)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "slow")
            await fake.called("slow")
            nursery.start_soon(ask, "query-status")
        assert order == ["query-status", "slow"]


async def test_oob_is_used_when_negotiated_and_refused_when_not() -> None:
    async with pair() as (fake, qmp):
        fake.on("yank", {})
        await qmp.execute("yank", oob=True)
        assert fake.calls[-1].oob
    async with fake_qemu(capabilities=()) as fake, open_session(fake.dial(), name="vm") as qmp:
        assert not qmp.oob
        assert fake.calls[0].arguments == {}
        with pytest.raises(HostLacks):
            await qmp.execute("yank", oob=True)


async def test_arguments_that_are_no_json_harm_nothing(over: Over) -> None:
    async with pair(over) as (_, qmp):
        with pytest.raises(TypeError):
            await qmp.execute("x", {"a": object()})
        with pytest.raises(ValueError, match="JSON"):
            await qmp.execute("x", {"a": float("nan")})
        assert await qmp.execute("query-status")


async def test_leaving_the_block_ends_everybody_else() -> None:
    async with trio.open_nursery() as nursery:
        async with pair() as (fake, qmp):
            fake.misbehave("query-status", Lost())
            ended: list[type[Exception]] = []

            async def ask() -> None:
                try:
                    await qmp.execute("query-status")
                except MonitorLost as error:
                    ended.append(type(error))

            nursery.start_soon(ask)
            await fake.called("query-status")
        await wait_all_tasks_blocked()
        assert ended == [MonitorLost]


# --- each misbehaviour


async def test_a_lost_reply_harms_no_other_command(autojump_clock: MockClock) -> None:
    async with pair() as (fake, qmp):
        fake.misbehave("query-status", Lost())
        with trio.move_on_after(30) as patience:
            await qmp.execute("query-status")
        assert patience.cancelled_caught
        assert await qmp.execute("query-status")
        assert qmp.strays == (0, 0, 0)


async def test_a_late_reply_is_dropped_and_counted(autojump_clock: MockClock) -> None:
    async with pair() as (fake, qmp):
        fake.misbehave("query-status", Late(5))
        with trio.move_on_after(1):
            await qmp.execute("query-status")
        await trio.sleep(10)
        assert qmp.strays == (1, 0, 0)
        assert await qmp.execute("query-status")


async def test_duplicated_and_unknown_replies_are_dropped_and_counted(over: Over) -> None:
    async with pair(over) as (fake, qmp):
        fake.misbehave("query-status", Duplicated(3))
        await qmp.execute("query-status")
        fake.send_raw(b'{"return": {}, "id": 4711}\n{"return": {}, "id": "x"}\n')
        await qmp.execute("query-status")
        assert qmp.strays == (0, 2, 2)


@pytest.mark.parametrize(
    ("plan", "outcome"),
    [
        (HangUp(), MonitorLost),
        (HalfSent(), MonitorTorn),
        (Garbage(), MonitorGarbled),
        (Garbage(b"[1, 2]\n"), MonitorGarbled),
        (Garbage(b'{"what": "ever"}\n'), MonitorGarbled),
        (Garbage(b'{"event": 7}\n'), MonitorGarbled),
        (Garbage(b'{"event": "E", "data": []}\n'), MonitorGarbled),
        (ParseError(), MonitorMisread),
    ],
    ids=str,
)
async def test_a_broken_stream_has_a_typed_end(
    over: Over, plan: Any, outcome: type[Exception]
) -> None:
    async with pair(over) as (fake, qmp):
        fake.misbehave("query-status", plan)
        fake.misbehave("query-name", Lost())
        ends: list[type[Exception]] = []

        async def ask(command: str) -> None:
            try:
                await qmp.execute(command)
            except (MonitorLost, MonitorGarbled) as error:
                ends.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "query-name")
            await fake.called("query-name")
            nursery.start_soon(ask, "query-status")
        assert ends == [outcome, outcome]
        await _expect_end(qmp, outcome)


def test_the_foreign_names_of_the_ends_still_catch() -> None:
    assert issubclass(MonitorLost, qemu.qmp.ExecInterruptedError)
    assert issubclass(MonitorGarbled, qemu.qmp.error.ProtocolError)
    assert issubclass(MonitorSilent, qemu.qmp.ConnectError)


async def test_a_reply_without_sense_fails_its_command_only() -> None:
    async with pair() as (fake, qmp):
        fake.misbehave("query-status", Garbage(b'{"id": 2, "error": {"class": 1}}\n'))
        with pytest.raises(MonitorGarbled, match="neither a result nor an error"):
            await qmp.execute("query-status")
        assert qmp.lost is None
        assert await qmp.execute("query-status")


async def test_what_comes_before_the_end_is_still_delivered(over: Over) -> None:
    async with pair(over) as (_, qmp):
        with qmp.subscribe() as events:
            await qmp.execute("quit")
            assert (await events.next()).name == "SHUTDOWN"
            with pytest.raises(MonitorLost):
                await events.next()
        await _expect_end(qmp, MonitorLost)


async def test_silence_after_the_greeting_is_the_callers_to_bound(
    autojump_clock: MockClock,
) -> None:
    async with pair() as (fake, qmp):
        fake.misbehave("query-status", Silent())
        with pytest.raises(trio.TooSlowError), trio.fail_after(40):
            await qmp.execute("query-status")
        assert qmp.lost is None


# --- the handshake


async def test_no_greeting_is_bounded(autojump_clock: MockClock) -> None:
    async with fake_qemu(silent=True) as fake:
        started = trio.current_time()
        with pytest.raises(MonitorSilent) as silent:
            async with open_session(fake.dial(), name="vm", greeting_timeout=7):
                raise AssertionError
        assert trio.current_time() - started == pytest.approx(7)
        assert silent.value.waited == 7


async def test_a_greeting_without_negotiation_is_bounded(autojump_clock: MockClock) -> None:
    async with fake_qemu() as fake:
        fake.misbehave("qmp_capabilities", Lost())
        with pytest.raises(MonitorSilent):
            async with open_session(fake.dial(), name="vm", greeting_timeout=7):
                raise AssertionError


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b"", MonitorLost),
        (b'{"QMP": {"ver', MonitorTorn),
        (b"SSH-2.0-OpenSSH\n", MonitorGarbled),
        (b'{"return": {}}\n', MonitorGarbled),
        (b'{"QMP": {"capabilities": []}}\n', MonitorGarbled),
        (b'{"QMP": 7}\n', MonitorGarbled),
    ],
)
async def test_what_is_no_greeting(said: bytes, outcome: type[Exception]) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    with theirs, pytest.raises(outcome):
        async with open_session(ours, name="vm"):
            raise AssertionError
    assert ours.fileno() == -1


# --- size and load


async def _seconds_for_reply(qmp: Session, size: int) -> float:
    started = time.perf_counter()
    reply = await qmp.execute("reply", {"size": size})
    assert len(reply) == size
    return time.perf_counter() - started


@pytest.mark.alone
async def test_replies_of_many_megabytes_take_linear_time(over: Over) -> None:
    mega = 1024 * 1024
    async with pair(over) as (fake, qmp):
        fake.on("reply", lambda arguments: "x" * arguments["size"])
        small = min([await _seconds_for_reply(qmp, mega // 2) for _ in range(5)])
        large = min([await _seconds_for_reply(qmp, 16 * mega) for _ in range(3)])
        assert await qmp.execute("query-status")
    # Linear is 32 times as long and quadratic 1024; between them lies the machine's noise.
    assert large < 32 * 6 * small


async def test_events_in_a_flood_do_not_starve_replies() -> None:
    async with pair("socket") as (fake, qmp):
        fake.misbehave("query-status", Flooding(20_000))
        with qmp.subscribe("FLOOD", buffer=10):  # its overflow is its own affair
            with trio.fail_after(10):
                assert await qmp.execute("query-status")
                assert await qmp.execute("query-status")


async def test_other_tasks_run_while_a_flood_is_read() -> None:
    async with pair("socket") as (fake, qmp):
        fake.misbehave("query-status", Flooding(20_000))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await qmp.execute("query-status")
            nursery.cancel_scope.cancel()
        assert turns > 20


async def test_the_observer_sees_every_message_and_may_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[tuple[str, bytes, float]] = []

    def observe(direction: str, data: bytes, when: float) -> None:
        seen.append((direction, data, when))
        if b"RESUME" in data:
            raise RuntimeError("observer's own trouble")

    async with pair(observer=observe) as (_, qmp):
        await qmp.execute("query-status")
        assert [direction for direction, _, _ in seen] == [
            "received", "sent", "received", "sent", "received",
        ]  # fmt: skip
        assert seen[3][1] == b'{"execute":"query-status","id":2}'
        assert seen[4][1].endswith(b"}")
        assert all(a[2] <= b[2] for a, b in pairwise(seen))
        await qmp.execute("cont")
        assert await qmp.execute("query-status")
        assert len(seen) == 7
    assert "observer failed" in caplog.text
