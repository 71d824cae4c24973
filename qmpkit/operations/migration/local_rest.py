"""What postcopy asks of a destination whose machine is in this program."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.postcopy import cut, listened
from qmpkit.operations.migration.ways import Route, laid_again
from qmpkit.operations.power import resume
from qmpkit.qmp.errors import CommandRefused

__all__ = ["LocalRest"]

_CURE = "do without postcopy, or let QEMU have userfaultfd: `sysctl vm.unprivileged_userfaultfd=1`"


class LocalRest:
    """A `Rest` of a guest that comes to *machine*; *incoming* is None for one found again."""

    def __init__(self, machine: Machine, incoming: Incoming | None = None) -> None:
        self._machine = machine
        self._incoming = incoming

    async def refusals(self, setting: Setting) -> tuple[Fault, ...]:
        """See `Rest`."""
        try:
            await self._machine.execute("migrate-set-capabilities", {"capabilities": setting})
        except CommandRefused as refused:
            said = self._machine.child.stderr_tail.strip()
            message = f"the destination refuses it: {refused.desc}"
            return (Fault("policy", f"{message} ({said})" if said else message, _CURE),)
        return ()

    def switched(self) -> None:
        """See `Rest`."""
        if self._incoming is not None:
            self._incoming.has_switched = True
            self._incoming.keep_images()  # it is about to write to them, lost or not

    async def listen(self, heard: Callable[[str | None], None]) -> None:
        """See `Rest`."""
        await listened(self._machine, heard)

    async def run(self) -> float | None:
        """See `Rest`."""
        self._machine.loaded()
        with self._machine.subscribe("RESUME") as resumes:
            await resume(self._machine)
            resumed = resumes.next_nowait()
        return None if resumed is None else resumed.monotonic

    async def cut(self) -> None:
        """See `Rest`."""
        await cut(self._machine)

    def laid_again(
        self, options: MigrationOptions, route: Route | None, source: Machine
    ) -> AbstractAsyncContextManager[str]:
        """See `Rest`."""
        return laid_again(options, route, source, self._machine)

    def last_words(self) -> str:
        """See `Rest`."""
        return self._machine.child.stderr_tail.strip()
