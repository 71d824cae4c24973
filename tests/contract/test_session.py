"""What a session promises, on the fake and on every real QEMU: the fake must not be kinder."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio

from qmpkit.qmp.errors import CommandRefused, MonitorLost, MonitorMisread
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.schema import fetch_schema
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import fake_qemu
from tests.conftest import binaries

FAKES = ["fake over memory", "fake over socket"]


@contextmanager
def _real(binary: str) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        qemu = subprocess.Popen(
            [
                *(binary, "-machine", "none", "-display", "none", "-nodefaults", "-S"),
                *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
                *("-mon", "chardev=qmp,mode=control"),
            ],
            pass_fds=[theirs.fileno()],
        )
    try:
        yield ours
    finally:
        qemu.kill()
        qemu.wait()


@asynccontextmanager
async def _session(server: str) -> AsyncIterator[Session]:
    if server in FAKES:
        over: Any = server.split()[-1]
        async with fake_qemu() as fake, open_session(fake.dial(over), name="vm") as qmp:
            yield qmp
    else:
        with _real(binaries()[server]) as sock:
            async with open_session(sock, name="vm") as qmp:
                yield qmp


def _named(request: pytest.FixtureRequest, record_property: Any) -> str:
    name: str = request.param
    if name not in FAKES:
        record_property("qemu", f"QEMU {name}")
    return name


@pytest.fixture(params=[*FAKES, *binaries()])
def server(request: pytest.FixtureRequest, record_property: Any) -> str:
    return _named(request, record_property)


@pytest.fixture(params=[FAKES[1], *binaries()])
def server_on_a_socket(request: pytest.FixtureRequest, record_property: Any) -> str:
    return _named(request, record_property)


@pytest.fixture(params=list(binaries()))
def real(request: pytest.FixtureRequest, record_property: Any) -> str:
    return _named(request, record_property)


async def test_the_greeting_and_its_capabilities(server: str) -> None:
    async with _session(server) as qmp:
        assert qmp.greeting is not None
        assert qmp.oob
        version = await qmp.execute("query-version")
        assert version["qemu"] == qmp.greeting.QMP.version["qemu"]


async def test_states_and_their_events_come_before_the_reply(server: str) -> None:
    async with _session(server) as qmp:
        assert (await qmp.execute("query-status"))["running"] is False
        with qmp.subscribe("STOP", "RESUME") as changes:
            for command, event in (("cont", "RESUME"), ("stop", "STOP"), ("cont", "RESUME")):
                await qmp.execute(command)
                seen = changes.next_nowait()
                assert seen is not None
                assert seen.name == event
                assert seen.time_ns is not None
            await qmp.execute("cont")  # nothing changes, nothing is told
            assert changes.next_nowait() is None


async def test_an_unknown_command_is_refused_by_class(server: str) -> None:
    async with _session(server) as qmp:
        with pytest.raises(CommandRefused) as refused:
            await qmp.execute("no-such-command")
        assert refused.value.error_class == "CommandNotFound"


async def test_many_commands_at_once(server: str) -> None:
    async with _session(server) as qmp:
        got: list[Any] = []

        async def ask() -> None:
            got.append(await qmp.execute("query-status"))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
        assert len(got) == 200
        assert qmp.strays == (0, 0, 0)


async def test_cancelled_commands_leave_the_session_usable(server: str) -> None:
    async with _session(server) as qmp:
        for _ in range(50):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(qmp.execute, "query-status")
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        # Replies come in order: after this one, every late one has come.
        assert await qmp.execute("query-version")
        assert qmp.strays.unknown == qmp.strays.duplicated == 0


async def test_long_arguments_arrive_whole_though_others_are_cancelled(server: str) -> None:
    # Longer than a socket's buffer, so that cancelling strikes half-sent messages.
    async with _session(server) as qmp:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(_refused, qmp, 300_000)
                await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        assert await qmp.execute("query-version")
        await _refused(qmp, 300_000)


async def _refused(qmp: Session, size: int) -> None:
    with pytest.raises(CommandRefused):
        await qmp.execute("no-such-command", {"text": "x" * size})


async def test_quit_is_answered_then_told_then_the_stream_ends(server: str) -> None:
    async with _session(server) as qmp:
        with qmp.subscribe("SHUTDOWN") as ends:
            assert await qmp.execute("quit") == {}
            event = await ends.next()
            assert event.data == {"guest": False, "reason": "host-qmp-quit"}
            assert type(await qmp.wait_lost()) is MonitorLost
        with pytest.raises(MonitorLost):
            await qmp.execute("query-status")


async def test_descriptors_reach_the_other_side(server_on_a_socket: str) -> None:
    async with _session(server_on_a_socket) as qmp:
        reader, writer = os.pipe()
        try:
            async with trio.open_nursery() as nursery:
                for n in range(5):  # each keeps its own, though all are sent at once
                    nursery.start_soon(_getfd, qmp, f"fd{n}", writer)
            for n in range(5):
                await qmp.execute("closefd", {"fdname": f"fd{n}"})
            with pytest.raises(CommandRefused):
                await qmp.execute("closefd", {"fdname": "fd0"})
        finally:
            os.close(reader)
            os.close(writer)


async def _getfd(qmp: Session, name: str, fd: int) -> None:
    assert await qmp.execute("getfd", {"fdname": name}, fds=[fd]) == {}


# --- what only a real QEMU can show


async def test_what_qemu_cannot_parse_is_a_misread(real: str) -> None:
    async with _session(real) as qmp:
        # As a broken stream would: our own encoder does not go beyond QEMU's 1024 levels.
        deep = b"[" * 1100 + b"]" * 1100
        qmp._transport.send(b'{"execute": "query-status", "arguments": {"a": ' + deep + b"}}\n")
        with pytest.raises(MonitorMisread):
            await qmp.execute("query-status")
            await qmp.execute("query-status")
        assert type(qmp.lost) is MonitorMisread


async def test_the_schema_knows_commands_arguments_values_and_events(real: str) -> None:
    async with _session(real) as qmp:
        schema = await fetch_schema(qmp)
    assert schema.has_command("blockdev-add")
    assert not schema.has_command("blockdev-subtract")
    assert schema.accepts("blockdev-add", "node-name")
    assert schema.accepts("blockdev-add", "cache.direct")
    assert not schema.accepts("blockdev-add", "cache.warm")
    assert "qcow2" in schema.values("blockdev-add", "driver")
    assert "running" in schema.values_returned("query-status", "status")
    assert schema.returns("query-named-block-nodes", "node-name")
    assert schema.has_event("JOB_STATUS_CHANGE")
    assert schema.allows_oob("migrate-recover")
    assert not schema.allows_oob("query-status")


async def test_what_differs_between_versions_is_seen_in_the_schema(real: str) -> None:
    async with _session(real) as qmp:
        schema = await fetch_schema(qmp)
    major = int(real.split(".")[0])
    assert schema.returns("query-status", "singlestep") is (major < 9)
    assert schema.accepts("migrate-incoming", "exit-on-error") is (major >= 10)
