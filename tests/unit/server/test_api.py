"""The API: each path does what it says, and what cannot be done is told, never hung on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit import __version__
from qmpkit.server.answers import NotUp
from qmpkit.spec.farm_data import farm_to_dict
from qmpkit.spec.saved import MEMORY
from qmpkit.testing.fake import Refuse
from tests.unit.farm.farms import farm
from tests.unit.server.conftest import Served, served
from tests.unit.supervisor.conftest import spec

pytestmark = pytest.mark.usefixtures("state")


async def _names(daemon: Served) -> dict[str, str]:
    _, said = await daemon.client.ask("GET", "/v1/machines")
    return {machine["name"]: machine["state"] for machine in said["machines"]}


async def test_a_farm_from_up_to_down() -> None:
    wanted = farm_to_dict(farm(web={"count": 2}, db={}))
    async with served() as daemon:
        ask, done = daemon.client.ask, daemon.client.done
        status, root = await ask("GET", "/v1")
        assert (status, root["farm"]) == (200, "lab")
        status, plan = await ask("POST", "/v1/plan", {"farm": wanted})
        assert [step["step"] for step in plan["steps"]] == ["Add"] * 3
        job = await done("POST", "/v1/up", {"farm": wanted})
        assert job["state"] == "done"
        assert {it["did"] for it in job["result"]["machines"]} == {"added"}
        assert await _names(daemon) == dict.fromkeys(("db", "web1", "web2"), "running")
        _, plan = await ask("POST", "/v1/plan", {"farm": wanted})
        assert plan["is_empty"]
        job = await done("POST", "/v1/scale", {"group": "web", "count": 1})
        assert (job["result"]["went_well"], list(await _names(daemon))) == (True, ["db", "web1"])
        _, saved = await ask("GET", "/v1/farm")
        assert saved["farm"]["machines"]["web"]["count"] == 1
        job = await done("POST", "/v1/down", {"grace": 0, "deadline": 5})
        assert job["result"]["went_well"]
        assert await _names(daemon) == {}


async def test_a_machine_is_acted_on_and_inspected() -> None:
    async with served() as daemon:
        done = daemon.client.done
        await daemon.lab.ensure(spec("a"))
        assert (await done("POST", "/v1/machines/a/pause"))["result"]["state"] == "paused"
        assert (await done("POST", "/v1/machines/a/resume"))["result"]["state"] == "running"
        job = await done("POST", "/v1/machines/a/stop", {"grace": 0})
        assert job["result"]["declared"] == "stopped"
        assert (await done("POST", "/v1/machines/a/restart"))["result"]["state"] == "running"
        _, seen = await daemon.client.ask("GET", "/v1/machines/a")
        assert (seen["spec"]["name"], seen["restart"]["policy"]) == ("a", "on-failure")
        failed = await done("DELETE", "/v1/machines/a")
        assert (failed["state"], failed["error"]["kinds"][0]) == ("failed", "SpecInvalid")
        assert (await done("DELETE", "/v1/machines/a?force=1"))["state"] == "done"
        assert await _names(daemon) == {}
        _, said = await daemon.client.ask("GET", "/v1/events?since=-1&follow=0")
        assert json.loads(_data(said)[-1][6:])["state"] == "forgotten"  # whoever waits is woken


async def test_what_goes_with_a_saved_machine_is_told_before_it_goes(state: Path) -> None:
    async with served() as daemon:
        for name in ("a", "b"):
            await daemon.lab.ensure(spec(name))
            await daemon.lab.declare(name, "stopped")
        a, memory = daemon.lab.kept["a"], state / "saved" / "a" / MEMORY
        a.note(spec=attrs.evolve(a.spec, resume_from=str(memory)))
        for name, saved in (("a", True), ("b", False)):
            _, losses = await daemon.client.ask("GET", f"/v1/machines/{name}/losses")
            assert losses == {"memory": saved}
            gone = await daemon.client.done("DELETE", f"/v1/machines/{name}")
            assert gone["result"] == {"name": name, "discarded": saved}


async def test_events_from_the_past_and_on() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))
        _, said = await daemon.client.ask("GET", "/v1/events?since=-1&follow=0&machine=a")
        states = [json.loads(line[6:])["state"] for line in _data(said)]
        assert states == ["queued", "starting", "paused", "running"]
        _, said = await daemon.client.ask("GET", f"/v1/events?since_time={time.time()}&follow=0")
        assert _data(said) == []
        with daemon.client.listening("/v1/events?machine=a") as sock:
            assert b"200" in await trio.to_thread.run_sync(sock.recv, 65536)
            await daemon.lab.declare("a", "paused")
            assert b'"paused"' in await trio.to_thread.run_sync(sock.recv, 65536)


def _data(said: bytes) -> list[str]:
    return [line for line in said.decode().splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "words"),
    [
        ("GET", "/v1/machines/nobody", None, 404, "no machine 'nobody'"),
        ("GET", "/v1/machines/..%2f..%2fetc", None, 404, "Not Found"),
        ("GET", "/v1/machines/%2e%2e", None, 404, "there is no machine"),
        ("POST", "/v1/machines/a/explode", None, 404, "no machine can 'explode'"),
        ("POST", "/v1/machines", {}, 405, "Method Not Allowed"),
        ("GET", "/v2", None, 404, "Not Found"),
        ("POST", "/v1/up", {}, 400, "lacks farm"),
        ("POST", "/v1/up", {"fram": {}, "restart": 1}, 400, "unknown key (did you mean 'farm'?)"),
        ("POST", "/v1/up", {"xyz": {}}, 400, "xyz: unknown key (known: farm, grace, restart)"),
        ("POST", "/v1/up", [1], 400, "must be an object"),
        ("POST", "/v1/scale", {"group": "web"}, 400, "lacks count"),
        ("POST", "/v1/scale", {"group": "web", "count": True}, 400, "cannot be true or false"),
        ("POST", "/v1/down", {"names": [1]}, 400, "list of texts"),
        ("POST", "/v1/losses", {"names": [1]}, 400, "list of texts"),
        ("POST", "/v1/losses", {"names": ["nobody"]}, 400, "no machine of the farm"),
        ("POST", "/v1/machines/a/stop", {"grace": "1"}, 400, "cannot be a text"),
        ("POST", "/v1/machines/a/exec", {"argv": "ls"}, 400, "cannot be a text"),
        ("POST", "/v1/machines/a/exec", {"argv": []}, 400, "list of texts"),
        ("POST", "/v1/machines/a/exec", {"argv": ["ls"], "stdin_base64": "%"}, 400, "no base64"),
        ("POST", "/v1/machines/a/exec", {"argv": ["ls"], "env": {"a": 1}}, 400, "of texts"),
        ("POST", "/v1/machines/a/exec", {"argv": ["ls"], "timeout": 0}, 400, "more than 0"),
        ("POST", "/v1/machines/a/exec", {"argv": ["ls", "\udcff"]}, 400, "not UTF-8"),
        ("POST", "/v1/machines/a/exec", {"argv": ["ls"], "env": {"\udcff": ""}}, 400, "not UTF-8"),
        ("POST", "/v1/down", {"\ud800": 1}, 400, "unknown key"),
        ("POST", "/v1/machines/a/stop", {"grace": -1}, 400, "must be 0 or more, not -1"),
        ("POST", "/v1/down", {"deadline": float("nan")}, 400, "must be 0 or more, not nan"),
        ("GET", "/v1/machines/a/files?path=etc", None, 400, "absolute"),
        ("GET", "/v1/machines/a/logs?tail=x", None, 400, "whole number"),
        ("GET", "/v1/machines/a/logs?tail=-1", None, 400, "0 or more lines"),
        ("GET", "/v1/machines/a/logs?log=..%2fx", None, 404, "no log"),
        ("POST", "/v1/machines/a/console?serial=x", None, 404, "no console 'x'"),
        ("GET", "/v1/jobs/nothing", None, 404, "no job"),
        ("GET", "/v1/events?since=now", None, 400, "whole number"),
        ("POST", "/v1/machines/a/stop", {"grace": 10**400}, 400, "grace: is too large"),
        ("GET", f"/v1/events?beat={'9' * 400}", None, 400, "beat must be milliseconds"),
        ("GET", "/v1/events?since_time=now", None, 400, "seconds since 1970"),
        ("GET", "/v1/events?since_time=nan", None, 400, "seconds since 1970"),
    ],
)
async def test_what_is_wrong_is_told(
    method: str, target: str, body: Any, status: int, words: str
) -> None:
    async with served() as daemon:
        await daemon.lab.ensure(attrs.evolve(spec("a"), agent=True, serials=1))
        got, said = await daemon.client.ask(method, target, body)
        assert (got, words in said["error"]["message"]) == (status, True), said


async def test_every_answer_has_the_version() -> None:
    async with served() as daemon:
        for target in (b"/v1", b"/v1/machines/nobody", b"/v1/events?follow=0"):
            with daemon.client.connected() as sock:
                sock.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
                head = (await trio.to_thread.run_sync(sock.recv, 65536)).partition(b"\r\n\r\n")[0]
                assert f"qmpkit-version: {__version__}".encode() in head.split(b"\r\n")


async def test_all_faults_of_a_farm_at_once() -> None:
    bad = {"schema": 1, "machines": {"a": {"memory": "x"}, "b": {"machin": "q35"}}}
    async with served() as daemon:
        status, said = await daemon.client.ask("POST", "/v1/up", {"farm": bad})
        paths = [fault["path"] for fault in said["error"]["faults"]]
        assert (status, len(paths)) == (400, 2)
        assert [path.split(".")[1] for path in paths] == ["a", "b"]


async def test_a_farm_may_be_longer_than_what_else_is_asked() -> None:
    seed = {"cloud_init": {"user_data": "#cloud-config\n" + "#" * 100_000}}
    wanted = farm_to_dict(farm(**{f"m{number}": seed for number in range(20)}))
    async with served() as daemon:
        status, plan = await daemon.client.ask("POST", "/v1/plan", {"farm": wanted})
        assert (status, len(plan["steps"])) == (200, 20)


async def test_a_body_that_is_no_json_or_too_long() -> None:
    async with served() as daemon:
        status, said = await daemon.client.ask("POST", "/v1/up", raw=b"{")
        assert (status, "no JSON" in said["error"]["message"]) == (400, True)
        for target, room in (("/v1/down", 1 << 20), ("/v1/scale", 1 << 20), ("/v1/up", 16 << 20)):
            long = b'{"farm": "' + b"x" * room + b'"}'
            status, said = await daemon.client.ask("POST", target, raw=long)
            assert (status, f"more than {room}" in said["error"]["message"]) == (413, True)


_STOPPED = "machine 'a' is gone: it was stopped on request"


async def test_a_machine_that_is_down_has_no_guest_to_ask() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))
        await daemon.lab.declare("a", "stopped")
        posts = ("console", "exec", "migrate", "migrate/check")
        asked = [("GET", "screenshot"), ("GET", "tune"), *(("POST", path) for path in posts)]
        for method, path in asked:
            body = {"argv": ["ls"]} if path == "exec" else None
            status, said = await daemon.client.ask(method, f"/v1/machines/a/{path}", body)
            told = said["error"]["message"]
            assert (status, told.partition(" after ")[0]) == (409, _STOPPED)
            assert told.endswith(". Cure: `qmpkit start a`, and ask again")


async def test_a_machine_without_disks_has_none_to_list() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))
        await daemon.lab.declare("a", "stopped")
        assert await daemon.client.ask("GET", "/v1/machines/a/disks") == (200, {"disks": {}})


def test_what_would_help_one_that_does_not_answer() -> None:
    def cure(state: str, *, rests: bool) -> str:
        return str(NotUp("a", state, "", rests=rests)).partition(". Cure: ")[2]

    assert cure("saved", rests=True) == "`qmpkit start a`, and ask again"
    assert cure("queued", rests=False) == "`qmpkit wait a`, and ask again"
    assert cure("unknown", rests=True) == "`qmpkit migrate --settle a`, and ask again"


async def test_one_that_says_no_is_quoted() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))

        def refuse(_: dict[str, Any]) -> object:
            raise Refuse("not today")

        daemon.ground["a"].qemu.on("stop", refuse)
        job = await daemon.client.done("POST", "/v1/machines/a/pause")
        assert (job["state"], "not today" in job["error"]["message"]) == ("failed", True)


async def test_a_job_is_cancelled() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("b"), requires=["a"], wait=False)
        started = await daemon.client.ask("POST", "/v1/machines/b/start")
        ident = started[1]["job"]
        with daemon.client.listening(f"/v1/jobs/{ident}/events?beat=100") as sock:
            said = b""
            while b": still here" not in said:  # whoever watches learns that it goes on
                said += await trio.to_thread.run_sync(sock.recv, 65536)
        status, _ = await daemon.client.ask("DELETE", f"/v1/jobs/{ident}")
        assert status == 202
        _, said = await daemon.client.ask("GET", f"/v1/jobs/{ident}/events")
        assert json.loads(_data(said)[-1][6:])["state"] == "cancelled"
        _, listed = await daemon.client.ask("GET", "/v1/jobs")
        assert [job["state"] for job in listed["jobs"]] == ["cancelled"]


async def test_idle_subscribers_and_clients_that_vanish_hold_up_nobody() -> None:
    async with served() as daemon:
        await daemon.lab.ensure(spec("a"))
        socks = []
        try:
            for number in range(200):
                sock = await trio.to_thread.run_sync(daemon.client.connected)
                socks.append(sock)
                target = "/v1/events" if number % 2 else "/v1/machines/a/console"
                verb = "GET" if number % 2 else "POST"
                length = "" if number % 2 else "Transfer-Encoding: chunked\r\n"
                sock.sendall(f"{verb} {target} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode())
            for sock in socks[:100]:
                sock.close()
            await daemon.lab.declare("a", "paused")
            began = time.monotonic()
            assert await _names(daemon) == {"a": "paused"}
            assert time.monotonic() - began < 5
        finally:
            for sock in socks:
                sock.close()


@pytest.mark.alone
async def test_a_list_of_many_takes_little() -> None:
    async with served() as daemon:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(daemon.lab.ensure, spec(f"m{number}"))
        await _names(daemon)
        began = time.monotonic()
        assert len(await _names(daemon)) == 60
        assert time.monotonic() - began < 0.5


async def test_the_daemon_ends_when_it_is_asked_to() -> None:
    async with served() as daemon:
        status, _ = await daemon.client.ask("POST", "/v1/shutdown")
        assert status == 202
        await daemon.over.wait()
