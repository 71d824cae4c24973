"""Somebody between two QEMUs of a migration, who slows it down, holds it up, and cuts it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, Destination, MachineSpec, MigrationOptions, Round, State
from qmpkit._trio import raise_failed
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration import ways
from qmpkit.operations.migration.local_end import LocalRest
from qmpkit.operations.migration.ways import Route

__all__ = ["BY_RELAY", "LARGE", "Relay", "ahead", "phases"]

BY_RELAY = MigrationOptions(way="unix")
LARGE = "1049104KiB"  # seconds of zero pages, through a relay; an odd size: see `migrating.ODD`

_RATE = 1 << 20  # bytes a second: what stands for the devices is through in tenths
_CHUNK = 16 << 10


class Relay:
    """What goes by way of "unix" comes by here, but for what goes again after a cut."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._go_on = trio.Event()
        self._go_on.set()
        self._pumping = trio.CancelScope()
        self._by_unix = ways._by_unix
        patch.setattr(ways, "_by_unix", self._through)

    def hold(self) -> None:
        """Let nothing pass any more from the source."""
        self._go_on = trio.Event()

    def release(self) -> None:
        """Let all pass."""
        self._go_on.set()

    def cut(self) -> None:
        """Close both connections."""
        self._pumping.cancel()

    async def hold_ahead(self, destination: Machine) -> None:
        """Hold it up once the guest runs at the destination, before its memory is there."""
        await destination.reached(State.RUNNING)
        self.hold()
        status = (await destination.execute("query-migrate"))["status"]
        assert status == "postcopy-active", status

    def held_ahead(self, patch: pytest.MonkeyPatch) -> trio.Event:
        """Set when a guest runs at its destination, whose memory does not follow then."""
        ahead, run = trio.Event(), LocalRest.run

        async def ran(rest: LocalRest) -> float | None:
            when = await run(rest)
            self.hold()
            ahead.set()
            return when

        patch.setattr(LocalRest, "run", ran)
        return ahead

    @asynccontextmanager
    async def _through(self, source: Machine, destination: Machine) -> AsyncIterator[Route]:
        async with self._by_unix(source, destination) as route:
            there = route.uri.removeprefix("unix:")
            here = f"{there}-relay"
            try:
                with trio.socket.socket(trio.socket.AF_UNIX) as listening:
                    await listening.bind(here)
                    listening.listen(1)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._relay, listening, there)
                        yield Route(f"unix:{here}")
                        nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise_failed(group)
            finally:
                Path(here).unlink()  # noqa: ASYNC240

    async def _relay(self, listening: trio.socket.SocketType, there: str) -> None:
        connection, _ = await listening.accept()
        near = trio.SocketStream(connection)
        async with near, await trio.open_unix_socket(there) as far:
            with self._pumping:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, True)
                    nursery.start_soon(self._pump, far, near, False)

    async def _pump(self, come: trio.abc.Stream, go: trio.abc.Stream, slow: bool) -> None:
        try:
            while data := await come.receive_some(_CHUNK):
                if slow:
                    await trio.sleep(len(data) / _RATE)
                    await self._go_on.wait()
                await go.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.cut()


@asynccontextmanager
async def ahead(spec: MachineSpec) -> AsyncIterator[tuple[VM, Destination]]:
    """A guest that counts, and a destination for it."""
    async with qmpkit.running(attrs.evolve(spec, memory=LARGE)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm) as destination:
            yield vm, destination


def phases(seen: list[Round]) -> list[str]:
    """The phases that were told, each once, in their order."""
    return list(dict.fromkeys(now.phase for now in seen))
