"""One machine that comes from another supervisor: until it runs here, or is no more."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import trio

from qmpkit.errors import Fault, QmpkitError, SpecInvalid
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.errors import MigrationUnknown
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.remote_rest import COMING
from qmpkit.operations.migration.storage_there import Door, serves
from qmpkit.operations.migration.tls import DISKS_TLS_ID, identified
from qmpkit.operations.migration.ways import listened, listened_at_path
from qmpkit.operations.migration.wire import Wire, WireLost, error_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.network import inet_address
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.arrivals import Arrivals, move_named
from qmpkit.supervisor.moves.conversation import Work, question
from qmpkit.supervisor.moves.offer import options_from, ports_from, setting_from
from qmpkit.supervisor.moves.offer_disks import with_bitmaps
from qmpkit.supervisor.moves.rest_here import RestHere
from qmpkit.supervisor.moves.terms import ReceiveTerms
from qmpkit.supervisor.record import Record, Remainder

__all__ = ["Arriving"]

log = logging.getLogger("qmpkit.supervisor")

_LOOK = 10.0
_LAST_WORDS = 5.0
_SOCKET, _DISKS = "migration", "disks"


class _Over(Exception):
    """The conversation has come to its end."""


class _Follows(Exception):
    """The source has switched to postcopy."""


class Arriving:
    """What its source may ask, each when its turn has come."""

    def __init__(
        self,
        wire: Wire,
        kept: Kept,
        machine: Machine,
        end: LocalEnd,
        terms: ReceiveTerms | None,
        means: Means,
        arrivals: Arrivals,
    ) -> None:
        self._wire = wire
        self._kept = kept
        self._machine = machine
        self._end = end
        self._terms = terms
        self._means = means
        self._arrivals = arrivals
        self._options: MigrationOptions | None = None
        self._has_loaded = False
        self._is_listening = False
        self._is_served = False
        self._is_alike = not end.moves
        self._may_follow = False
        self._rest: RestHere | None = None
        self._stack: AsyncExitStack
        self._can: dict[str, Work] = {
            "beat": self._beat,
            "postcopy": self._postcopy,
            "set_up": self._set_up,
            "disks": self._disks,
            "alike": self._alike,
            "listen": self._listen,
            "loaded": self._loaded,
            "ports": self._ports,
            "run": self._run,
            "rest": self._follows,
            "discard": self._discard,
        }

    async def served(self) -> None:
        """Answer until it runs here (`Record.arrived`), or is given up; WireLost.

        Of one whose memory follows: until all of it is here.
        """
        async with AsyncExitStack() as self._stack:
            try:
                while True:
                    await self._answer()
            except _Over:
                return
            except _Follows:
                assert self._rest is not None, "whose source may ask for it"
                await self._rest.followed(self._wire)
            except WireLost as lost:
                if self._rest is None:
                    raise
                # It may have switched in this moment; one that has not ends its QEMU.
                log.info("machine %r, which arrives: %s", self._kept.name, lost)
                await self._rest.followed(None)
            finally:
                if self._rest is not None:
                    self._rest.close()

    async def _answer(self) -> None:
        asked, work = await question(self._wire, self._can)
        what = asked["ask"]
        try:
            answer = {"ok": await work(asked)}
        except WireLost:
            raise
        except Exception as error:
            if not isinstance(error, QmpkitError):
                log.exception("machine %r, which arrives", self._kept.name)
            answer = {"error": error_of(error)}
        if what == "run" and self._kept.record.arrived:
            await self._say_it_runs(answer)
        await self._wire.send(answer)
        if what in ("run", "discard"):
            raise _Over
        if what == "rest":
            raise _Follows

    async def _say_it_runs(self, answer: dict[str, Any]) -> None:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(WireLost):
            await self._wire.send(answer)
        raise _Over

    async def _beat(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _postcopy(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Whether its QEMU is let do it, found by trying."""
        self._must(self._options is None, "postcopy")
        faults = await self._end.rest().refusals(setting_from(asked.get("capabilities")))
        self._may_follow = not faults
        return {"faults": [[fault.path, fault.message, fault.hint] for fault in faults]}

    async def _set_up(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._must(self._options is None, "set_up")
        options = options_from(asked.get("options"), self._terms)
        moves = with_bitmaps(self._end.moves, asked.get("bitmaps"))
        await self._end.set_up(setting_from(asked.get("capabilities")), options, moves)
        self._options = options
        return {}

    async def _disks(self, _: dict[str, Any]) -> dict[str, Any]:
        """Its source may write to the new images from here on, until they are alike."""
        self._must(not self._is_alike and not self._is_served, "disks")
        self._is_served = True
        if self._terms is None:
            path = str(self._kept.home.socket(_DISKS))
            await serves(self._machine, self._end.moves, Door(server=_unix(path)))
            return {"path": path}
        identity = identified(self._machine, self._terms.tls, "server", id=DISKS_TLS_ID)
        await self._stack.enter_async_context(identity)
        host, port = inet_address(self._terms.address) or ("", 0)
        server = {"type": "inet", "host": host}
        port = port + 1 if port else await trio.to_thread.run_sync(_free_port, host)
        door = Door(server={**server, "port": str(port)}, tls=DISKS_TLS_ID)
        await serves(self._machine, self._end.moves, door)
        return {"port": port}

    async def _alike(self, _: dict[str, Any]) -> dict[str, Any]:
        self._must(self._is_served, "alike")
        self._is_served, self._is_alike = False, True
        await self._end.alike()
        return {}

    async def _listen(self, _: dict[str, Any]) -> dict[str, Any]:
        self._must(not self._is_listening, "listen")
        if (options := self._options) is None:
            raise SpecInvalid([Fault("", "it is to be set up before it listens")])
        self._is_listening = True
        if self._terms is not None:
            port = await self._stack.enter_async_context(listened(options, self._machine))
            await self._on_record(options, f"{self._terms.address.rpartition(':')[0]}:{port}")
            return {"port": port}
        path = self._kept.home.socket(_SOCKET)
        await listened_at_path(self._machine, path)
        self._stack.push_async_callback(_removed, path)
        await self._on_record(options, "")
        return {"path": str(path)}

    async def _on_record(self, options: MigrationOptions, address: str) -> None:
        """From here on its source may switch, so whoever supervises next does not end it."""
        if not self._may_follow:
            return
        kept, ident = self._kept, self._kept.record.arriving
        remainder = Remainder(within=options.recover_within, address=address)
        kept.note(rest=remainder)
        if not await kept.write(self._means.journal):
            assert kept.not_durable is not None
            raise kept.not_durable
        incoming = self._end.incoming
        self._rest = RestHere(kept, self._machine, self._means, ident, remainder, incoming)
        self._rest.hang_up = self._wire.close
        self._means.arrivals.coming[ident] = self._rest

    async def _follows(self, _: dict[str, Any]) -> dict[str, Any]:
        self._must(self._rest is not None and self._is_alike, "rest")
        return {"outcome": COMING, "who": await self._arrivals.who()}

    async def _loaded(self, _: dict[str, Any]) -> dict[str, Any]:
        self._must(self._is_listening, "loaded")
        if not self._has_loaded:
            with trio.move_on_after(_LOOK):
                await self._end.loaded()
                await self._end.examine()
                self._has_loaded = True
        return {"loaded": self._has_loaded}

    async def _ports(self, asked: dict[str, Any]) -> dict[str, Any]:
        await self._end.open_ports(ports_from(asked.get("ports"), self._kept.spec))
        return {}

    async def _discard(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"said": await self._end.discard(patience=_LAST_WORDS if self._options else 0.0)}

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            raise WireLost(f"it asks {what!r} at the wrong time")

    async def _run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What is on record decides: once that is written, the guest is here, whoever dies."""
        self._must(self._has_loaded and self._is_alike, "run")
        kept, before = self._kept, self._kept.record
        with trio.move_on_after(3 * STEP_GRACE, shield=True) as bound:
            history = before.history.came_up(time.time())
            runs = bool(asked.get("runs"))  # it may have been paused, or let go on, on its way
            up: dict[str, Any] = {"phase": "up", "history": history, "change": None}
            up["declared"] = "running" if runs else "paused"
            kept.note(arriving="", arrived=before.arriving, rest=None, **up)
            if not await kept.write(self._means.journal):
                why = kept.not_durable  # forgotten when the journal can be written again
                assert why is not None
                await self._take_back(before)
                raise why
            try:
                await self._end.run(runs=runs)
            except MigrationUnknown as unknown:
                return await self._not_known(before, unknown.why)
            except BaseException:
                await self._take_back(before)
                raise
            self._end.arrived()
            kept.tended = True  # by the conversation, until a task of its own takes over
            whence = "this host" if self._terms is None else "another host"
            kept.tell("received", f"from {whence} ({move_named(kept.record.arrived)})")
        if bound.cancelled_caught:  # it must not be taken for one that runs
            return await self._not_known(before, f"it has not answered for {3 * STEP_GRACE:g} s")
        return {}

    async def _not_known(self, before: Record, why: str) -> dict[str, Any]:
        """It may have run here for a moment, and is ended; so it is told of to who asks later."""
        kept = self._kept
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(QmpkitError):
            await self._arrivals.put(before.arriving, "ended")
        kept.tell("unknown", f"its QEMU is ended, which was told to run here: {why}")
        kept.note(arrived="")
        return {"unknown": why}

    async def _take_back(self, before: Record) -> None:
        kept = self._kept
        names = ("arriving", "phase", "history", "change", "rest", "declared")
        kept.note(**{name: getattr(before, name) for name in names})
        kept.note(arrived="")
        await kept.write(self._means.journal)


async def _removed(path: Path) -> None:
    with trio.move_on_after(STEP_GRACE, shield=True):
        await trio.to_thread.run_sync(path.unlink, True, abandon_on_cancel=True)


def _unix(path: str) -> dict[str, str]:
    return {"type": "unix", "path": path}


def _free_port(host: str) -> int:
    """One that nobody has now: QEMU's NBD server does not say which it was given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
