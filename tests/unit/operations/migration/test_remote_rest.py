"""The rest of a guest that is with another supervisor, which answers as the test wants."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from qmpkit import MigrationFailed
from qmpkit.operations.migration import remote_rest
from qmpkit.operations.migration.place import MovePlace
from qmpkit.operations.migration.postcopy import UNHEARD
from qmpkit.operations.migration.remote_rest import COMING, RemoteRest, route_to
from qmpkit.operations.migration.wire import PROTOCOL, Wire, WireLost

PLACE = MovePlace(farm="there")
FAR = MovePlace(host="there.example", port=4455)


class There:
    """Another supervisor; `asked`: all that it was asked, but for news."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.status: str | None = "active"
        self.runs = self.over = False
        self.outcome, self.who = COMING, "me"
        self.cuts: list[str] = []  # at which it hangs up, before it answers
        self.is_gone = False
        self.joins = 0
        self._nursery: trio.Nursery
        patch.setattr(remote_rest, "connected", self._connected)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def _connected(self, place: MovePlace) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.is_gone:
            raise WireLost("nobody waits there")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, Wire(theirs))
        return ours

    async def _serve(self, wire: Wire) -> None:
        with suppress(WireLost):
            while True:
                asked = await wire.receive()
                what = asked["ask"]
                if what in self.cuts or self.is_gone:
                    self.cuts = [it for it in self.cuts if it != what]
                    break
                await wire.send({"ok": await self._answer(what)})
        await wire.close()

    async def _answer(self, what: str) -> dict[str, Any]:
        if what not in ("now", "hello"):
            self.asked.append(what)
        match what:
            case "hello":
                return {"protocol": PROTOCOL}
            case "rest":
                self.joins += 1
                return {"outcome": self.outcome, "who": self.who}
            case "now":
                await trio.sleep(0.5)
                how = {"status": self.status, "runs": self.runs, "times": 0, "said": "words"}
                return {**how, "over": self.over}
            case "run_ahead":
                self.runs = True
            case "recover":
                return {"path": "/run/there"}
            case "give_up":
                return {"outcome": "lost", "over": True}
        return {}


class Bringing:
    """The rest that comes; `heard`: what was told of it, each once."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []
        self.rest = RemoteRest(PLACE, "mover", "1" * 32, "me")

    def __call__(self, status: str | None) -> None:
        if self.heard[-1:] != [status]:
            self.heard.append(status)


async def test_it_is_run_once_whatever_breaks_off(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, it = There(monkeypatch), Bringing()
    there.cuts = ["run_ahead", "now", "rest"]
    async with there.open(), trio.open_nursery() as nursery:
        nursery.start_soon(it.rest.listen, it)
        assert await it.rest.run() is not None
        assert there.asked.count("run_ahead") == 1 and there.joins > 1
        there.status, there.over = "completed", True
    assert it.heard == ["active", "completed"] and it.rest.outcome == "runs"


async def test_one_that_was_there_by_then_is_not_run_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, it = There(monkeypatch), Bringing()
    there.outcome = "runs"
    async with there.open(), trio.open_nursery() as nursery:
        nursery.start_soon(it.rest.listen, it)
        with trio.fail_after(5):
            await it.rest.run()
    assert "run_ahead" not in there.asked


@pytest.mark.parametrize(
    ("outcome", "heard"),
    [("runs", "completed"), ("ran", "completed"), ("lost", None), ("discarded", None)],
)
async def test_an_outcome_is_the_last_word(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    heard: str | None,
) -> None:
    there, it = There(monkeypatch), Bringing()
    there.outcome = outcome
    async with there.open():
        await it.rest.listen(it)
        assert it.heard == [heard] and it.rest.outcome == outcome
        assert await it.rest.give_up() == outcome and "give_up" not in there.asked


async def test_who_has_gone_is_unheard_until_he_is_back(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, it = There(monkeypatch), Bringing()
    it.rest.within = 10.0
    async with there.open(), trio.open_nursery() as nursery:
        nursery.start_soon(it.rest.listen, it)
        await trio.sleep(2)
        there.is_gone = True
        await trio.sleep(9)
        assert it.heard == ["active"]
        await trio.sleep(5)
        assert it.heard == ["active", UNHEARD]
        there.is_gone = False
        await trio.sleep(5)
        assert it.heard == ["active", UNHEARD, "active"]
        nursery.cancel_scope.cancel()


@pytest.mark.bound(1000)  # seconds of a clock that jumps
async def test_for_how_long_nobody_was_heard(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another host; on this one the end of a QEMU is seen by the other."""
    there = There(monkeypatch)
    rests = [RemoteRest(place, "mover", "1" * 32, "me") for place in (FAR, PLACE)]
    async with there.open(), trio.open_nursery() as nursery:
        for rest in rests:
            assert rest.unheard() == 0
            nursery.start_soon(rest.listen, lambda _: None)
        await trio.sleep(50)
        assert rests[0].unheard() < 1
        there.is_gone = True
        await trio.sleep(50)
        assert 49 <= rests[0].unheard() <= 51 and rests[1].unheard() == 0
        there.is_gone = False
        await trio.sleep(5)
        assert rests[0].unheard() < 1
        nursery.cancel_scope.cancel()


async def test_a_stranger_says_nothing(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, it = There(monkeypatch), Bringing()
    there.who, there.outcome = "somebody else", "discarded"
    async with there.open():
        assert await it.rest.give_up() == ""
        there.is_gone = True
        assert await it.rest.give_up() == ""
        assert there.joins > 1


async def test_the_last_words_and_the_way_anew(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, it = There(monkeypatch), Bringing()
    async with there.open(), trio.open_nursery() as nursery:
        nursery.start_soon(it.rest.listen, it)
        async with it.rest.laid_again(None, None, None) as uri:  # type: ignore[arg-type]
            assert uri == "unix:/run/there"
        await trio.sleep(1)
        assert it.rest.last_words() == "words"
        assert await it.rest.give_up() == "lost"
        nursery.cancel_scope.cancel()


def test_where_memory_goes_to() -> None:
    far = MovePlace(host="::1", port=4)
    assert route_to(far, {"port": 7}, "m") == "tcp:[::1]:7"
    assert route_to(PLACE, {"path": "/a"}, "m") == "unix:/a"
    for place, answer in ((far, {"path": "/a"}), (far, {"port": math.inf}), (PLACE, {"path": "a"})):
        with pytest.raises(MigrationFailed, match="listens nowhere"):
            route_to(place, answer, "m")
