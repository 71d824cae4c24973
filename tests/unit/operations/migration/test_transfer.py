"""How a migration is followed and steered, on a source that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from qmpkit import MigrationFailed, Round, Step
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.transfer import EVENTS, Transfer, loaded
from tests.unit.operations.migration.source import Source


class Told(Source):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__("active")
        self.halted = False
        self.told: list[tuple[str, Mapping[str, Any]]] = []

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        self.told.append((command, arguments))

    def passes(self, number: int) -> None:
        ram = {"dirty-sync-count": number, "remaining": 1, "total": 2, "transferred": 1}
        self.answer = {"status": "active", "ram": ram}
        self.hub.publish({"event": "MIGRATION_PASS", "data": {"pass": number}}, 0.0)


def by_number(now: Round) -> Step:
    if now.number > 4:
        return Step(give_up="enough")
    return Step(downtime=0.5 if now.number < 3 else 1.0)


@contextmanager
def following(
    source: Told, told: Callable[[Round], object], policy: Policy = by_number
) -> Iterator[Transfer]:
    with source.subscribe(*EVENTS) as changes:
        yield Transfer(source, changes, policy, 0.3, told)  # type: ignore[arg-type]


async def followed(source: Told, seen: list[Round]) -> Transfer:
    with following(source, seen.append) as transfer:
        for status in ("setup", "active"):
            source.say(status)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.reached, "pre-switchover")
            for number in range(1, 5):
                source.passes(number)
                await trio.sleep(0.01)
            source.say("pre-switchover")
        await transfer.reached("pre-switchover")  # it is not forgotten
        return transfer


async def test_each_pass_is_told_and_each_change_made_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, seen = Told(), list[Round]()
    transfer = await followed(source, seen)
    assert [now.number for now in seen] == [1, 1, 2, 3, 4]  # it is asked when it begins, too
    assert [now.downtime for now in seen] == [0.3, 0.5, 0.5, 0.5, 1.0]
    limits = [("migrate-set-parameters", {"downtime-limit": limit}) for limit in (500, 1000)]
    assert source.told == limits
    assert transfer.last == seen[-1] and not transfer.is_broken


async def test_a_policy_that_returns_no_step_is_told_so() -> None:
    source = Told()
    source.passes(1)
    with following(source, id, lambda _: None) as transfer:  # type: ignore[arg-type, return-value]
        source.say("active")
        with pytest.raises(MigrationFailed, match=r"has to return a qmpkit\.Step.*returned None"):
            await transfer.reached("pre-switchover")


async def test_a_guest_that_stands_still_is_not_kept_by_being_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A pass that is the last says so at once; asked about it, QEMU would switch over later."""
    source, seen = Told(), list[Round]()
    with following(source, seen.append) as transfer:
        source.say("setup")
        source.passes(1)
        source.say("active")
        await transfer.reached("active")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.reached, "pre-switchover")
            await trio.testing.wait_all_tasks_blocked()
            source.passes(2)
            source.hub.publish({"event": "STOP"}, 0.0)
            await trio.sleep(0.1)
            source.passes(3)
            await trio.sleep(0.1)
            source.say("pre-switchover")
        assert [now.number for now in seen] == [1]
        source.say("completed")
        await transfer.reached("completed")
        assert [now.number for now in seen] == [1]


async def test_one_that_was_paused_and_runs_again_is_asked_after_each_pass(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However often that is: a pass must not put off the next question for good."""
    source, seen = Told(), list[Round]()
    with following(source, seen.append) as transfer:
        source.say("setup")
        source.passes(1)
        source.say("active")
        for event in ("STOP", "RESUME"):
            source.hub.publish({"event": event}, 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.reached, "completed")
            for number in (2, 3, 4):
                source.passes(number)
                await trio.sleep(0.4)
            source.say("completed")
    assert [now.number for now in seen] == [2, 2, 3, 4]


@pytest.mark.parametrize("last", ["pre-switchover", "completed"])
async def test_a_policy_is_asked_before_a_guest_is_there(last: str) -> None:
    """However soon it is: so one that gives up is heard."""
    source, seen = Told(), list[Round]()
    with following(source, seen.append) as transfer:
        source.say("setup")
        source.passes(5)
        for status in ("active", last):
            source.say(status)
        with pytest.raises(MigrationFailed, match="enough"):
            await transfer.reached(last)
    assert [now.number for now in seen] == [5]


async def test_it_is_asked_also_when_nothing_is_said(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, seen = Told(), list[Round]()
    with following(source, seen.append) as transfer:
        source.say("active")
        with trio.move_on_after(1.4):
            await transfer.reached("pre-switchover")
        assert seen == []  # there was nothing to tell of
        source.answer["ram"] = {"remaining": 1, "total": 2, "transferred": 1}
        with trio.move_on_after(1.4):
            await transfer.reached("pre-switchover")
    assert len(seen) == 2


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_failure_has_qemus_reason(status: str) -> None:
    source = Told()
    with following(source, print) as transfer:
        source.answer = {"status": status, "error-desc": "no route"}
        source.say(status)
        with pytest.raises(MigrationFailed, match="no route"):
            await transfer.reached("pre-switchover")
        assert transfer.is_broken


async def test_it_is_given_up_without_being_broken() -> None:
    source = Told()
    with following(source, print) as transfer:
        source.say("active")
        source.passes(5)
        with pytest.raises(MigrationFailed, match="enough"):
            await transfer.reached("pre-switchover")
        assert not transfer.is_broken


async def test_a_destination_is_loaded_or_says_why_not() -> None:
    source = Told()
    with source.subscribe("MIGRATION") as changes:
        for status in ("setup", "active", "completed"):
            source.say(status)
        await loaded(source, changes)  # type: ignore[arg-type]
        source.answer = {"status": "failed"}
        source.say("failed")
        with pytest.raises(MigrationFailed, match="failed"):
            await loaded(source, changes)  # type: ignore[arg-type]
