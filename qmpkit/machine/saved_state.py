"""A machine's RAM and devices to and from a file: QEMU's migration, with a file at the other end.

By a descriptor, which works on 7.2 and 10.0, and under a sandbox that lets QEMU open nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from qmpkit.machine.state_forms import Form, OpenState, StateBroken, Way, reading, writing
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription

__all__ = ["MAIMED", "break_off", "cancel_saving", "finalized", "forget_migrations", "is_stuck"]
__all__ += ["load_state", "save_state", "take_images_back"]

_SET_ACTIVE = "blockdev-set-active"
_ENDED = ("completed", "failed", "cancelled")
_FINISHING = "finish-migrate"
_MOMENT = 0.005
_CHANGED = ("max-bandwidth", "multifd-channels")
_PLAIN: Mapping[str, Any] = {
    "max-bandwidth": 1 << 40,  # QEMU's own bound is 128 MiB a second, for networks
    "tls-creds": "",
    "multifd-compression": "none",
}

Told = Callable[[Mapping[str, Any]], object]
"""Is called with what `query-migrate` tells, about twice a second; must not block."""


class _Monitored(Protocol):
    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
    ) -> Any: ...

    def subscribe(self, *names: str) -> Subscription: ...


async def save_state(
    machine: _Monitored,
    path: Path,
    *,
    flags: int,
    ignore_shared: bool = False,
    form: Form = "plain",
    told: Told | None = None,
) -> str:
    """Write the state of a machine that stands still; why that failed, or nothing.

    *flags*: how *path* is opened.  It is safe on disk then.  *ignore_shared*: without RAM
    that is in a file anyway.  *form*: how the RAM is in the file; `load_state` finds it out.
    QEMU has let go of the images afterwards, until `cont`.  Cancelled, it writes no more.
    """
    migration = await machine.execute("query-migrate")
    if is_stuck(migration):
        return MAIMED
    if not _is_over(migration):
        return "a migration is under way"  # which is somebody else's, and not to be cancelled
    opened = await trio.to_thread.run_sync(os.open, path, flags | os.O_CLOEXEC, 0o600)
    try:
        before = await machine.execute("query-migrate-parameters")
        await forget_migrations(machine)
        plain = {name: value for name, value in _PLAIN.items() if name in before}
        await machine.execute("migrate-set-parameters", plain)
        try:
            async with writing(machine, opened, form) as way, _none_left(machine):
                why = await _transferred(machine, way, "migrate", ignore_shared, told)
        except StateBroken as broken:
            why = str(broken)
        finally:
            with trio.move_on_after(CANCEL_GRACE, shield=True):
                kept = {name: before[name] for name in _CHANGED if name in before}
                await machine.execute("migrate-set-parameters", kept)
        if not why:
            await trio.to_thread.run_sync(os.fsync, opened)
        return why
    finally:
        os.close(opened)


async def forget_migrations(machine: _Monitored) -> None:
    """Turn off what one to another QEMU has left on: a file has no way back, for instance.

    A machine that has migrated here has it on too.
    """
    known = await machine.execute("query-migrate-capabilities")
    if on := [it["capability"] for it in known if it["state"]]:
        off = [{"capability": name, "state": False} for name in on]
        await machine.execute("migrate-set-capabilities", {"capabilities": off})


@asynccontextmanager
async def _none_left(machine: _Monitored) -> AsyncIterator[None]:
    """No transfer is under way after the block, however it ends."""
    try:
        yield
    finally:
        with trio.move_on_after(CANCEL_GRACE, shield=True):
            await cancel_saving(machine)


CANCEL_GRACE = 30.0
"""Seconds that QEMU may take to stop writing a state."""

MAIMED = "its QEMU has not got over a switch to postcopy that failed: stop it, and start it again"

_BREAKS = 2.0
"""Seconds in which a migration notices that its connection is cut."""


async def cancel_saving(machine: _Monitored) -> None:
    """End a migration that is under way (`migrate_cancel`); none is fine."""
    with machine.subscribe("MIGRATION") as changes:
        if _is_over(await machine.execute("query-migrate")):
            return
        await machine.execute("migrate_cancel")
        while not _is_over(await machine.execute("query-migrate")):
            await changes.next()


async def break_off(machine: _Monitored, *, is_connected: bool = True) -> None:
    """End a migration to another QEMU that is under way; none is fine.

    QEMU 7.2 that is told to cancel when it has let go of the images ("device") runs on without
    them, and ends when its guest writes.  So its connection is cut (`yank`), for then it fails
    by itself, and takes them again.  One that is not connected, but writes to a file, pauses
    before its switchover (`wanted_capabilities`), and is waited for once it is past that.
    """
    with machine.subscribe("MIGRATION") as changes:
        if is_connected:
            try:
                await machine.execute("yank", {"instances": [{"type": "migration"}]})
            except CommandRefused:
                is_connected = False
        with trio.move_on_after(_BREAKS):
            while _ends_by_itself(await machine.execute("query-migrate"), is_connected):
                await changes.next()
    await cancel_saving(machine)


def _ends_by_itself(migration: Mapping[str, Any], is_cut: bool) -> bool:
    status = migration.get("status")
    if is_cut and status != "pre-switchover":  # in which it notices nothing
        return not _is_over(migration)
    return bool(status == "device") and not is_stuck(migration)


async def finalized(machine: _Monitored) -> str:
    """Wait until a machine whose state was sent can be told to run; its state (`query-status`).

    QEMU says that it has sent all some moments before, and has no event for this.
    """
    while (status := await _status_of(machine)) == _FINISHING:  # noqa: ASYNC110
        await trio.sleep(_MOMENT)
    return status


async def _status_of(machine: _Monitored) -> str:
    return str((await machine.execute("query-status"))["status"])


async def take_images_back(machine: _Monitored) -> None:
    """Have the images usable while a guest that was loaded stands still.

    From QEMU 10.0 on they are not in its hands before it runs.
    """
    commands = {it["name"] for it in await machine.execute("query-commands")}
    if _SET_ACTIVE in commands:
        await machine.execute(_SET_ACTIVE, {"active": True})


async def load_state(machine: _Monitored, state: OpenState, *, ignore_shared: bool = False) -> str:
    """Fill a machine that was started as incoming; why that failed, or nothing.

    It stands still then.  A QEMU that does not like the state ends, with the reason on its
    stderr.  Cancelled, the machine is of no more use.  *state* stays the caller's to close.
    """
    try:
        async with reading(machine, state) as way:
            return await _transferred(machine, way, "migrate-incoming", ignore_shared, None)
    except StateBroken as broken:
        return str(broken)


async def _transferred(
    machine: _Monitored, way: Way, command: str, ignore_shared: bool, told: Told | None
) -> str:
    # The first must be the same at both ends, or the incoming QEMU ends; events tell the end.
    wanted = {"x-ignore-shared": ignore_shared, "events": True, **way.capabilities}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await machine.execute("migrate-set-capabilities", {"capabilities": capabilities})
    with machine.subscribe("MIGRATION") as changes:
        await machine.execute(command, {"uri": way.uri})
        if told is None:  # to ask would hold up what is to be over in milliseconds
            ended = await changes.wait_for(lambda change: change.data.get("status") in _ENDED)
            if ended.data["status"] == "completed":
                return ""
            return _reason(await machine.execute("query-migrate"))
        while True:
            with trio.move_on_after(_EVERY):
                await changes.next()
            migration = await machine.execute("query-migrate")
            told(migration)
            if migration.get("status") in _ENDED:  # one that waits for a pipe has none yet
                break
    return "" if migration["status"] == "completed" else _reason(migration)


_EVERY = 0.5


def _is_over(migration: Mapping[str, Any]) -> bool:
    return migration.get("status", "none") in (*_ENDED, "none") or is_stuck(migration)


def is_stuck(migration: Mapping[str, Any]) -> bool:
    """Whether it has failed, and QEMU 10.0 does not know that: it has no event for it either.

    Told to cancel, it would do so for ever.  One that fails as others do may show this, for
    a moment.
    """
    return migration.get("status") == "device" and "error-desc" in migration


def _reason(migration: Mapping[str, Any]) -> str:
    return str(migration.get("error-desc") or migration.get("status") or "QEMU gave no reason")
