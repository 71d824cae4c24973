"""Programs that carry networks: they outlive their supervisor, and come again when they end.

They are kept as QEMUs are: on record before they outlive us, adopted by identity, and
started again by whoever supervises them then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit._trio import ServiceNursery, service_nursery
from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.process.durable import write_durably
from qmpkit.process.errors import ProcessVanished, SpawnFailed
from qmpkit.process.identity import Identity
from qmpkit.process.kept import KeptLike, adopted, kept_child, open_log, trim_log
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.farm import Joined

__all__ = ["Command", "Helpers", "Members", "Prepare", "helpers"]

log = logging.getLogger("qmpkit.networks")

SCHEMA = 1
_TRIM_EVERY = 60.0
STEADY = 10.0
"""Seconds after which one that ended is no reason to wait before it is started again."""

SLOWEST = 30.0
"""Seconds at most before one that ends again and again is started anew."""


@attrs.frozen
class Command:
    """How a helper is started: *fds* by the number it knows them by."""

    argv: Sequence[str]
    fds: Mapping[int, int] = attrs.field(factory=dict)


Prepare = Callable[[ExitStack], Command]
"""Makes what a helper needs and says how it is started.  Blocking; OSError, HostLacks.

What is on the stack is let go once it runs."""

Members = Collection[tuple[str, Joined]]
"""Who is in the networks of one kind, by name, and where."""


class _Helper:
    def __init__(self, name: str, prepare: Prepare, identity: Identity | None) -> None:
        self.name = name
        self.prepare = prepare
        self.identity = identity
        self.child: KeptLike | None = None
        self.unwanted = trio.Event()
        self.lasting = identity is not None  # it has run: failures are no reason to give it up
        self.settled = trio.Event()  # it runs, or the last try has failed
        self.failure: QmpkitError | None = None
        self.over = trio.Event()


class Helpers:
    """The helpers of one supervisor, by name; got from `helpers()`."""

    def __init__(self, state: Path, logs: Callable[[str], Path], services: ServiceNursery) -> None:
        self._file = state / "helpers.json"
        self._logs = logs
        self._services = services
        self._helpers: dict[str, _Helper] = {}
        self._others: dict[str, Identity] = {}  # on record, and perhaps of machines that are not
        self._writing = trio.Lock()

    async def found(self, wanted: Mapping[str, Prepare], *, end_others: bool) -> None:
        """Go on with those on record: adopt what is wanted, and end what is not, or leave it."""
        self._others = await trio.to_thread.run_sync(_read, self._file)
        for name, prepare in wanted.items():
            self._begin(_Helper(name, prepare, self._others.pop(name, None)))
        if self._others and end_others:
            await self._end_strays(self._others)
            self._others = {}
            await self._note_end()

    async def run(self, name: str, prepare: Prepare) -> None:
        """Have it running; raises HostLacks when it cannot be started."""
        while (helper := self._helpers.get(name)) is not None and helper.unwanted.is_set():
            await helper.over.wait()
        if helper is None:
            helper = _Helper(name, prepare, self._others.pop(name, None))
            self._begin(helper)
        await helper.settled.wait()
        if helper.failure is not None:
            raise helper.failure

    async def end(self, name: str) -> None:
        """End it, for good; nothing happens when it is not there."""
        if (helper := self._helpers.get(name)) is not None:
            helper.unwanted.set()
            await helper.over.wait()

    async def trim_logs(self) -> None:
        """Keep what they print in bounds, for ever."""
        while True:
            await trio.sleep(_TRIM_EVERY)
            for name in list(self._helpers):
                await trio.to_thread.run_sync(trim_log, self._logs(name))

    def _begin(self, helper: _Helper) -> None:
        self._helpers[helper.name] = helper
        self._services.start_soon(self._tend, helper)

    async def _tend(self, helper: _Helper) -> None:
        """Its whole life, over all the processes that it has been."""
        pause = 0.0
        while not helper.unwanted.is_set():
            began = trio.current_time()
            try:
                await self._live(helper)
            except QmpkitError as error:
                helper.failure = error
                if not helper.lasting and helper.identity is None:
                    break
                log.warning("%s cannot be started again: %s", helper.name, error)
                helper.settled.set()
            except Exception:  # one helper's failure is no other's
                log.exception("%s is left alone", helper.name)
                helper.failure = HostLacks(f"{helper.name} is not looked after", "see the log")
                if helper.identity is not None:
                    self._others[helper.name] = helper.identity  # it may live: stay on record
                break
            if not helper.unwanted.is_set():
                steady = trio.current_time() - began > STEADY
                pause = 0.0 if steady else min(SLOWEST, 2 * pause + 0.1)
                with trio.move_on_after(pause):
                    await helper.unwanted.wait()
        helper.identity = None
        del self._helpers[helper.name]
        helper.settled.set()
        await self._note_end()
        helper.over.set()

    async def _live(self, helper: _Helper) -> None:
        async with AsyncExitStack() as stack:
            helper.child = await self._adopted(stack, helper) or await self._started(stack, helper)
            helper.lasting, helper.failure = True, None
            helper.settled.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when, helper.unwanted, helper.child)
                status = await helper.child.wait()
                nursery.cancel_scope.cancel()
            if not helper.unwanted.is_set():
                told = f"{status}: {helper.child.stderr_tail}".rstrip(": ")
                log.warning("%s has ended (%s) and is started again", helper.name, told)
        helper.child = helper.identity = None
        helper.settled = trio.Event()

    async def _adopted(self, stack: AsyncExitStack, helper: _Helper) -> KeptLike | None:
        if helper.identity is None:
            return None
        watched = adopted(helper.identity, stderr=self._logs(helper.name))
        try:
            return await stack.enter_async_context(watched)
        except ProcessVanished as vanished:
            log.warning("%s is started again: %s", helper.name, vanished)
            helper.lasting, helper.identity = True, None
            return None
        except OSError as error:  # it lives, perhaps: never start a second one
            raise HostLacks(f"{helper.name} cannot be watched: {error}") from error

    async def _started(self, stack: AsyncExitStack, helper: _Helper) -> KeptLike:
        with ExitStack() as needed:
            try:
                logged = await trio.to_thread.run_sync(_begin_log, self._logs(helper.name), needed)
                command = await trio.to_thread.run_sync(helper.prepare, needed)
                process = kept_child(
                    command.argv,
                    stderr=self._logs(helper.name),
                    log=logged,
                    fds=command.fds,
                    name=helper.name,
                )
                child = await stack.enter_async_context(process)
                helper.identity = child.identity
                await self._save()
            except (OSError, SpawnFailed) as error:
                helper.identity = None  # it is killed as we leave
                raise HostLacks(f"{helper.name} cannot be started: {error}") from error
        if not await child.keep():
            status = await child.wait()
            helper.identity = None
            raise HostLacks(f"{helper.name} has ended at once ({status}): {child.stderr_tail}")
        return child

    async def _end_strays(self, strays: Mapping[str, Identity]) -> None:
        for name, identity in strays.items():
            with suppress(ProcessVanished):
                async with adopted(identity, stderr=self._logs(name)) as child:
                    child.kill()
                    await child.wait()

    async def _note_end(self) -> None:
        """Were it lost, the next to look would find that it has ended."""
        try:
            await self._save()
        except OSError as error:
            log.warning("cannot write %s: %s", self._file, error)

    async def _save(self) -> None:
        async with self._writing:
            known = {
                helper.name: helper.identity.to_dict()
                for helper in self._helpers.values()
                if helper.identity is not None
            } | {name: identity.to_dict() for name, identity in self._others.items()}
            text = json.dumps({"schema": SCHEMA, "helpers": known}, indent=1) if known else None
            await trio.to_thread.run_sync(write_durably, self._file, text)


@asynccontextmanager
async def helpers(state: Path, logs: Callable[[str], Path]) -> AsyncIterator[Helpers]:
    """Within the block helpers can be had, and are started again when they end.

    *logs* gives the file of what one prints.
    """
    async with shared_spawner(), service_nursery() as services:
        made = Helpers(state, logs, services)
        services.start_soon(made.trim_logs)
        yield made


def _begin_log(path: Path, needed: ExitStack) -> int:
    """Anew, so that its last lines are this one's last words."""
    path.unlink(missing_ok=True)
    return needed.enter_context(open_log(path))


async def _end_when(unwanted: trio.Event, child: KeptLike) -> None:
    await unwanted.wait()
    child.kill()


def _read(file: Path) -> dict[str, Identity]:
    """Those on record; one that cannot be read is nobody's: its process has what it needs."""
    try:
        plain: Any = json.loads(file.read_text())
        return {name: Identity.from_dict(item) for name, item in plain["helpers"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is unreadable (%s): the helpers on record in it are forgotten", file, error)
        return {}
