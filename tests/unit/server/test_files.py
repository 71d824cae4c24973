"""`qmpkit cp` by a daemon: any length, in parts, and what breaks off leaves what was there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit.cli import main
from qmpkit.testing.fake import Refuse
from qmpkit.vm import VM
from tests.unit.operations.guest import Guest, agent_alone
from tests.unit.server.client import Client
from tests.unit.server.conftest import served
from tests.unit.supervisor.conftest import spec

pytestmark = pytest.mark.usefixtures("state")

MIB = 1 << 20


@pytest.fixture(autouse=True)
def farm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_FARM", "lab")


@asynccontextmanager
async def guest_of(
    monkeypatch: pytest.MonkeyPatch, clients: list[Client] | None = None
) -> AsyncIterator[Guest]:
    """The guest of machine "a" of a daemon that listens; a client of it joins *clients*."""
    async with agent_alone() as (agent, guest), served() as daemon:
        await daemon.lab.ensure(attrs.evolve(spec("a"), agent=True, serials=1))
        monkeypatch.setattr(VM, "agent", agent)
        if clients is not None:
            clients.append(daemon.client)
        yield guest


async def cp(*words: str) -> int:
    return await trio.to_thread.run_sync(main, ["cp", *words])


async def test_more_than_any_message_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big, back = tmp_path / "big", tmp_path / "back"
    with big.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(64 * MIB)
        file.write(os.urandom(MIB))
    digest = hashlib.sha256(big.read_bytes()).digest()
    async with guest_of(monkeypatch) as guest:
        assert await cp(str(big), "a:/tmp/") == 0
        assert hashlib.sha256(guest.files["/tmp/big"]).digest() == digest
        assert await cp("a:/tmp/big", str(back)) == 0
        assert guest.largest_read <= 256 << 10
    assert hashlib.sha256(back.read_bytes()).digest() == digest


async def test_a_copy_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "folder" / "old"
    target.parent.mkdir()
    target.write_text("old")
    async with guest_of(monkeypatch) as guest:
        guest.files["/x"] = bytes(MIB)
        reads = []

        def fail(request: dict[str, Any]) -> object:
            reads.append(request)
            if len(reads) > 2:
                raise Refuse("Input/output error")
            return guest.do_file_read(request)

        guest.fake.on("guest-file-read", fail)
        assert await cp("a:/x", str(target)) == 1
        assert "reading /x in machine 'a' broke off: the machine is running" in (
            capfd.readouterr().err
        )
        assert guest.handles == {}
    assert (target.read_text(), os.listdir(target.parent)) == ("old", ["old"])  # noqa: PTH208


async def _waiting_for(what: Callable[[], bool]) -> None:
    while not what():  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_pipe_that_pauses_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr("qmpkit.server.bodies.PATIENCE", 0.1)
    head = b"PUT /v1/machines/a/files?path=/x HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"
    clients: list[Client] = []
    async with guest_of(monkeypatch, clients) as guest:
        with clients[0].connected() as sock:
            sock.sendall(head + b"one")
            await _waiting_for(lambda: "/x" in guest.files)
            await trio.sleep(0.5)
            assert len(guest.handles) == 1, "it is still open"
            if ends:
                sock.sendall(b"two")
                assert b" 200 " in await trio.to_thread.run_sync(sock.recv, 65536)
        await _waiting_for(lambda: not guest.handles)  # a client that has gone is noticed
        assert guest.files["/x"] == (b"onetwo" if ends else b"")


async def test_what_the_guest_refuses_is_told_before_all_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 40)  # it would take an hour

    def refuse(_: object) -> object:
        raise Refuse("failed to open file '/no/x': No such file or directory")

    async with guest_of(monkeypatch) as guest:
        guest.fake.on("guest-file-open", refuse)
        assert await cp(str(big), "a:/no/x") == 1
        assert "the guest of machine 'web' refused to write '/no/x'" in capfd.readouterr().err
        assert await cp("a:/no/x", str(tmp_path / "y")) == 1
        assert "the guest of machine 'web' refused to read '/no/x'" in capfd.readouterr().err
    assert not (tmp_path / "y").exists()


async def test_a_new_file_replaces_the_old_and_its_mode_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "old"
    target.write_text("old")
    target.chmod(0o640)
    async with guest_of(monkeypatch) as guest:
        guest.files["/x"] = b"new"
        assert await cp("a:/x", str(target)) == 0
        assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
        assert await cp("a:/x", str(tmp_path)) == 0
        assert (tmp_path / "x").read_text() == "new"
        assert await cp("a:/x", "-") == 0
        assert capfd.readouterr().out == "new"
        assert await cp("a:/x", str(tmp_path / "no" / "x")) == 2
        assert await cp(str(tmp_path / "no"), "a:/x") == 2
        assert await cp("a:/x", "a:/y") == 2
        assert await cp("a:x", "y") == 2
