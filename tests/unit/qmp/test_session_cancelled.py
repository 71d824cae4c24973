"""Cancelled anywhere, with half a message sent or descriptors on the way: the session lives on."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from qmpkit.errors import HostLacks
from qmpkit.qmp.errors import MonitorLost
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import Late, Lost, fake_qemu
from tests.unit.qmp.sessions import OVERS, Over, open_fds, pair


@pytest.fixture(params=OVERS)
def over(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- cancellation


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_anywhere_the_session_stays_usable(over: Over, steps: int) -> None:
    """Cancel after so many passes of the scheduler: before, while and after the reply comes."""
    async with pair(over) as (fake, qmp):
        fake.on("echo", lambda arguments: arguments)

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                assert await qmp.execute("echo", {"n": 1}) == {"n": 1}

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(ask, scope)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        assert await qmp.execute("echo", {"n": 2}) == {"n": 2}
        assert qmp.strays.unknown == qmp.strays.duplicated == 0
        assert not qmp._pending.waiting


async def test_cancelled_at_every_checkpoint_nothing_stays_open(over: Over) -> None:
    async with fake_qemu() as fake:

        async def whole_life() -> None:
            async with open_session(fake.dial(over), name="vm") as qmp:
                with qmp.subscribe("POKED") as pokes:
                    for _ in range(2):
                        await qmp.execute("poke")
                        await pokes.next()

        async def check() -> None:
            await wait_all_tasks_blocked()
            assert open_fds() == before

        fake.on("poke", lambda _: fake.emit("POKED"))
        before = open_fds()
        struck = await cancel_at_every_checkpoint(whole_life, after=check)
        assert struck >= 6


async def test_in_a_cancelled_scope_nothing_is_sent(over: Over) -> None:
    async with pair(over) as (fake, qmp):
        with trio.CancelScope() as scope:
            scope.cancel()
            await qmp.execute("quit")
        await qmp.execute("query-status")
        assert [call.command for call in fake.calls] == ["qmp_capabilities", "query-status"]


@asynccontextmanager
async def stuck_peer() -> AsyncIterator[tuple[Session, trio.SocketStream]]:
    """A session over a small socket buffer, and its peer, which reads only what a test reads."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    await peer.send_all(b'{"QMP": {"version": {}, "capabilities": []}}\n')
    async with peer, trio.open_nursery() as nursery:
        nursery.start_soon(_accept_negotiation, peer)
        async with open_session(ours, name="vm") as qmp:
            yield qmp, peer


async def _accept_negotiation(peer: trio.SocketStream) -> None:
    await peer.receive_some()
    await peer.send_all(b'{"return": {}, "id": 1}\n')


async def _read_lines(peer: trio.SocketStream, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        data += bytes(await peer.receive_some())
    return data.splitlines()


async def _give_up(qmp: Session, command: str, size: int) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(qmp.execute, command, {"text": "x" * size})
            await wait_all_tasks_blocked()
            scope.cancel()


async def test_half_a_message_is_sent_to_its_end_and_a_queued_one_is_withdrawn() -> None:
    async with stuck_peer() as (qmp, peer):
        await _give_up(qmp, "half", 1_000_000)  # begun: the socket holds a part of it
        await _give_up(qmp, "queued", 1_000_000)  # not begun: never sent
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(qmp.execute, "whole", {"text": "y"})
                lines = await _read_lines(peer, 2)
                scope.cancel()
        assert [line[:20] for line in lines] == [b'{"execute":"half","a', b'{"execute":"whole","']
        assert len(lines[0]) > 1_000_000
        # Only what was sent is remembered as outstanding.
        await peer.send_all(b'{"return": {}, "id": 2}\n{"return": {}, "id": 3}\n')
        await wait_all_tasks_blocked()
        assert qmp.strays == (1, 1, 0) or qmp.strays == (1, 0, 1)


async def test_the_end_of_the_stream_wakes_those_who_wait_to_send() -> None:
    async with stuck_peer() as (qmp, peer), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(MonitorLost):
                await qmp.execute("big", {"text": "x" * 1_000_000})

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await peer.aclose()


async def test_sending_to_a_closed_peer_is_a_lost_monitor() -> None:
    async with stuck_peer() as (qmp, peer):
        await peer.aclose()
        with pytest.raises(MonitorLost):  # before the reader has run
            await qmp.execute("query-status")
        assert isinstance(await qmp.wait_lost(), MonitorLost)


# --- file descriptors


async def test_descriptors_travel_with_their_command() -> None:
    async with pair("socket") as (fake, qmp):
        reader, writer = os.pipe()
        try:
            await qmp.execute("getfd", {"fdname": "out"}, fds=[writer])
            assert fake.calls[-1].fds == 1
            os.write(fake.named_fds["out"], b"through")
            assert os.read(reader, 99) == b"through"
        finally:
            os.close(reader)
            os.close(writer)


async def test_commands_with_descriptors_go_one_at_a_time(autojump_clock: MockClock) -> None:
    async with pair("socket") as (fake, qmp):
        fake.misbehave("getfd", Late(5))
        with trio.move_on_after(1):
            await qmp.execute("getfd", {"fdname": "a"}, fds=[0])
        # The first was given up, but QEMU has not answered it: its descriptor is still there.
        started = trio.current_time()
        await qmp.execute("getfd", {"fdname": "b"}, fds=[0])
        assert trio.current_time() - started == pytest.approx(4)
        assert qmp.strays.late == 1


async def test_the_streams_end_frees_those_who_wait_their_turn(autojump_clock: MockClock) -> None:
    async with pair("socket") as (fake, qmp):
        fake.misbehave("getfd", Lost())
        with trio.move_on_after(1):
            await qmp.execute("getfd", {"fdname": "a"}, fds=[0])
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(MonitorLost):
                    await qmp.execute("getfd", {"fdname": "b"}, fds=[0])

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            fake.hang_up()


async def test_queued_descriptors_are_copies_and_are_closed() -> None:
    before = open_fds()
    async with stuck_peer() as (qmp, _):
        await _give_up(qmp, "half", 1_000_000)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                reader, writer = os.pipe()
                nursery.start_soon(_with_fd, qmp, writer)
                await wait_all_tasks_blocked()
                os.close(writer)  # ours to close at any time
                os.close(reader)
                scope.cancel()
    assert open_fds() == before


async def _with_fd(qmp: Session, fd: int) -> None:
    await qmp.execute("getfd", {"fdname": "a"}, fds=[fd])


async def test_a_stream_cannot_carry_descriptors() -> None:
    async with pair("memory") as (_, qmp):
        for _ in range(2):  # the turn is given back
            with pytest.raises(HostLacks):
                await qmp.execute("getfd", {"fdname": "a"}, fds=[0])


async def test_a_bad_descriptor_harms_nothing() -> None:
    async with pair("socket") as (_, qmp):
        for _ in range(2):
            with pytest.raises(OSError, match="Bad file descriptor"):
                await qmp.execute("getfd", {"fdname": "a"}, fds=[9999])
        assert await qmp.execute("query-status")
