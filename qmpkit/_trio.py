"""Trio helpers that every layer may use."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import trio

__all__ = ["ServiceNursery", "both", "check_trio", "finished_within", "in_thread"]
__all__ += ["raise_collapsed", "raise_failed", "service_nursery"]

_One = TypeVar("_One")
_Other = TypeVar("_Other")


class ServiceNursery:
    """Runs services that outlive their user's cleanup; made by `service_nursery`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._ended = False

    def start_soon(
        self, service: Callable[..., Awaitable[Any]], *args: object, name: object = None
    ) -> None:
        """Run *service* until it ends or the block is left."""
        self._nursery.start_soon(self._run, service, args, name=name or service)

    async def _run(self, service: Callable[..., Awaitable[Any]], args: tuple[object, ...]) -> None:
        if self._ended:  # started in the block's last moment: its first step comes after the end
            return
        # The shield's bound is the block: leaving it cancels every service.
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                await service(*args)
            finally:
                self._scopes.discard(scope)

    def _end(self) -> None:
        self._ended = True
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def service_nursery() -> AsyncIterator[ServiceNursery]:
    """A nursery whose tasks are cancelled only once the block's own cleanup is done.

    A cancellation from outside reaches the block at once, but the services only
    when the block has been left.  In a plain nursery the reader of a monitor is
    cancelled together with the code that still has to say `quit` over it.
    The block must bound its own cleanup: the services wait for it.  A service
    that raises cancels the block as in any nursery.  One exception leaves
    unwrapped, several as a group.
    """
    try:
        async with trio.open_nursery() as nursery:
            services = ServiceNursery(nursery)
            try:
                yield services
            finally:
                services._end()
    except BaseExceptionGroup as group:
        raise_collapsed(group)


@asynccontextmanager
async def finished_within(grace: float) -> AsyncIterator[None]:
    """Let a cancellation reach the block only *grace* seconds after it came.

    For what must not be cut off in the middle and is over soon as a rule.  A block that
    ends in that time ends well; the cancellation comes after it.
    """
    if not grace:
        yield
        return
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(shield=True) as scope:
                nursery.start_soon(_give_up_later, scope, grace)
                yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_failed(group)


async def _give_up_later(scope: trio.CancelScope, grace: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        scope.deadline = trio.current_time() + grace


def check_trio() -> None:
    """Tell a program of asyncio's what is wrong with it, which trio's own words do not."""
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "qmpkit runs under trio, and this is no task of trio's. Cure: trio.run(main) in place"
            " of asyncio.run(main()); in a program of asyncio's, in a thread of its own"
        )


async def in_thread(sync_fn: Callable[[], _One], *, abandon_on_cancel: bool = False) -> _One:
    """*sync_fn* in a thread that no slow disk takes from others; OSError when none is to be had.

    A service for many must not end where the system allows no more threads for a while.
    """
    begun = False

    def run() -> _One:
        nonlocal begun
        begun = True
        return sync_fn()

    limiter = trio.CapacityLimiter(1)
    try:
        return await trio.to_thread.run_sync(
            run, abandon_on_cancel=abandon_on_cancel, limiter=limiter
        )
    except RuntimeError as error:
        if begun:  # a defect of its own, and no "can't start new thread"
            raise
        raise OSError(errno.EAGAIN, str(error)) from error


async def both(
    one: Callable[[], Awaitable[_One]], other: Callable[[], Awaitable[_Other]]
) -> tuple[_One, _Other]:
    """What two give that do not wait for each other; the failure of one gives up the other.

    When both fail, of the same cause as a rule, one of the two errors is raised.
    """
    given: list[_One] = []

    async def ask() -> None:
        given.append(await one())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            second = await other()
    except BaseExceptionGroup as group:
        failed = group.split(trio.Cancelled)[1]
        raise_collapsed(group if failed is None else failed.derive(failed.exceptions[:1]))
    return given[0], second


def raise_failed(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """As `raise_collapsed`, without the cancellation of others: what failed tells more.

    A scope that is cancelled stays so, and is heard of again by whoever waits next.
    """
    raise_collapsed(group.split(trio.Cancelled)[1] or group)


def raise_collapsed(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the only exception in *group*, its cause and context kept; else the group itself.

    One level only: below it may be a group that the user raised and expects.
    """
    error: BaseException = group
    if len(group.exceptions) == 1:
        error = group.exceptions[0]
    context = error.__context__
    try:
        raise error
    finally:
        # Raising here would name the group as what was being handled, and hide the true context.
        error.__context__ = context
        del error, context, group
