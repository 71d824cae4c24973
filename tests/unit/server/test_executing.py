"""Programs that are run for clients, and end with them."""

from __future__ import annotations

import json

import pytest
import trio

from tests.unit.server.client import Client
from tests.unit.server.test_files import guest_of

pytestmark = pytest.mark.usefixtures("state")


async def test_a_program_is_killed_when_its_client_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Client] = []
    async with guest_of(monkeypatch, clients) as guest:
        begun, killed = trio.Event(), trio.Event()

        def run(request: dict[str, object]) -> object:
            reply = guest.do_exec(request)
            (killed if request["path"] == "kill" else begun).set()
            return reply

        guest.fake.on("guest-exec", run)
        body = json.dumps({"argv": ["sleep"]}).encode()
        with clients[0].connected() as sock:
            head = f"POST /v1/machines/a/exec HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            sock.sendall(head.encode() + b"\r\n\r\n" + body)
            with trio.fail_after(10):
                await begun.wait()
        with trio.fail_after(10):
            await killed.wait()
        status, said = await clients[0].ask("POST", "/v1/machines/a/exec", {"argv": ["fail"]})
        assert (status, said["exit"]) == (200, 3)
