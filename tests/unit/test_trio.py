"""The service nursery: services outlive their user's cleanup, and nothing outlives the block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import qmpkit
from qmpkit._trio import (
    ServiceNursery,
    both,
    finished_within,
    in_thread,
    raise_collapsed,
    service_nursery,
)


async def _serve(log: list[str], name: str = "service") -> None:
    try:
        await trio.sleep_forever()
    finally:
        log.append(f"{name} ended")


async def test_services_end_with_the_block() -> None:
    log: list[str] = []
    async with service_nursery() as services:
        services.start_soon(_serve, log, name="named")
        await wait_all_tasks_blocked()
        log.append("body ended")
    assert log == ["body ended", "service ended"]


async def test_a_cancelled_body_cleans_up_while_services_still_serve() -> None:
    log: list[str] = []
    requests, serve = trio.open_memory_channel[trio.Event](0)

    async def answer() -> None:
        async for request in serve:
            request.set()

    with trio.CancelScope() as scope:
        async with service_nursery() as services:
            services.start_soon(answer)
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.fail_after(5) as bound:
                    bound.shield = True
                    done = trio.Event()
                    await requests.send(done)
                    await done.wait()
                    log.append("answered")
    assert log == ["answered"]
    assert scope.cancelled_caught


async def test_the_body_is_cancelled_at_once_and_services_after_it(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    with trio.move_on_after(1):
        async with service_nursery() as services:
            services.start_soon(_serve, log)
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(3, shield=True):
                    await trio.sleep(2)
                log.append("body ended")
    assert trio.current_time() == pytest.approx(3)
    assert log == ["body ended", "service ended"]


async def test_a_failing_service_cancels_the_block_and_leaves_unwrapped() -> None:
    async def fail() -> None:
        raise ValueError("service")

    with pytest.raises(ValueError, match="service"):
        async with service_nursery() as services:
            services.start_soon(fail)
            await trio.sleep_forever()


async def test_one_error_of_the_body_leaves_unwrapped_with_its_cause() -> None:
    cause = KeyError("cause")
    with pytest.raises(ValueError, match="body") as caught:
        async with service_nursery() as services:
            services.start_soon(_serve, [])
            raise ValueError("body") from cause
    assert caught.value.__cause__ is cause


async def test_several_errors_leave_as_a_group() -> None:
    async def fail_when_ended() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("service")

    with pytest.raises(ExceptionGroup) as caught:
        async with service_nursery() as services:
            services.start_soon(fail_when_ended)
            await wait_all_tasks_blocked()
            raise ValueError("body")
    assert {type(error) for error in caught.value.exceptions} == {ValueError, KeyError}


async def test_a_service_started_in_the_last_moment_never_runs() -> None:
    log: list[str] = []
    async with service_nursery() as services:
        services.start_soon(_serve, log)
    assert log == []


async def test_a_service_may_start_services() -> None:
    log: list[str] = []

    async def parent(services: ServiceNursery) -> None:
        services.start_soon(_serve, log, "child")
        await _serve(log, "parent")

    async with service_nursery() as services:
        services.start_soon(parent, services)
        await wait_all_tasks_blocked()
    assert sorted(log) == ["child ended", "parent ended"]


def test_collapsing_keeps_the_errors_own_context() -> None:
    inner, outer = KeyError("inner"), ValueError("outer")
    outer.__context__ = inner
    group = ExceptionGroup("a", [outer])

    def fail() -> None:
        raise group

    with pytest.raises(ValueError, match="outer") as caught:
        try:
            fail()
        except ExceptionGroup as raised:
            raise_collapsed(raised)
    assert caught.value.__context__ is inner


@pytest.mark.parametrize("size", [1, 2])
def test_a_group_that_the_user_raised_stays_one(size: int) -> None:
    theirs = ExceptionGroup("theirs", [KeyError()] * size)
    with pytest.raises(ExceptionGroup) as caught:
        raise_collapsed(ExceptionGroup("nursery", [theirs]))
    assert caught.value is theirs


def test_a_group_of_several_leaves_as_it_is() -> None:
    group = ExceptionGroup("a", [KeyError(), ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        raise_collapsed(group)
    assert caught.value is group


# --- finished within a grace


@pytest.mark.parametrize(("takes", "ends"), [(3.0, True), (7.0, False)])
async def test_a_cancelled_block_may_finish(
    autojump_clock: MockClock, takes: float, ends: bool
) -> None:
    log: list[str] = []
    with trio.move_on_after(1) as scope:
        async with finished_within(5):
            await trio.sleep(takes)
            log.append("finished")
        log.append("after")
    assert scope.cancelled_caught
    assert log == (["finished"] if ends else [])
    assert trio.current_time() == pytest.approx(takes if ends else 6.0)


async def test_what_is_not_cancelled_takes_its_time(autojump_clock: MockClock) -> None:
    async with finished_within(5):
        await trio.sleep(20)
    with pytest.raises(ZeroDivisionError):
        async with finished_within(5):
            raise ZeroDivisionError


async def test_what_fails_in_the_grace_tells_more_than_the_cancellation(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(ZeroDivisionError), trio.move_on_after(1):
        async with finished_within(5):
            await trio.sleep(3)
            raise ZeroDivisionError


async def fails() -> None:
    raise ValueError("it is gone")


async def test_both_are_given() -> None:
    async def one() -> int:
        await trio.lowlevel.checkpoint()
        return 1

    assert await both(one, one) == (1, 1)


async def test_two_that_fail_of_one_cause_are_one_error() -> None:
    with pytest.raises(ValueError, match="it is gone"):
        await both(fails, fails)


async def test_the_failure_of_one_gives_up_the_other() -> None:
    for one, other in ((fails, trio.sleep_forever), (trio.sleep_forever, fails)):
        with pytest.raises(ValueError, match="it is gone"):
            await both(one, other)


async def test_a_defect_in_a_thread_is_no_want_of_threads() -> None:
    def defect() -> None:
        raise RuntimeError("dictionary changed size during iteration")

    with pytest.raises(RuntimeError, match="changed size"):
        await in_thread(defect)


@pytest.mark.parametrize(
    "door",
    [
        lambda: qmpkit.running(qmpkit.MachineSpec(name="a")),
        lambda: qmpkit.restored("/nowhere"),
        lambda: qmpkit.Supervisor("lab"),
        lambda: qmpkit.connect("/nowhere"),
    ],
)
def test_a_program_of_asyncios_is_told_what_is_wrong_with_it(
    door: Callable[[], AbstractAsyncContextManager[object]],
) -> None:
    async def program() -> None:
        async with door():
            pass

    with pytest.raises(RuntimeError, match=r"runs under trio.* Cure: trio\.run"):
        asyncio.run(program())
