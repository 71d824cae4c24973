"""What operations need of a machine, so that a fake can stand for it in tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from qmpkit._trio import ServiceNursery
from qmpkit.machine.ledger import Ledger
from qmpkit.machine.report import ExitReport
from qmpkit.machine.turn import Turn
from qmpkit.qmp.events import Subscription
from qmpkit.spec.machine import MachineSpec

__all__ = ["Changeable", "Monitor", "Screened", "Verdict"]

Verdict = Callable[[], Awaitable[ExitReport | None]]
"""Tells how a machine has ended when one of its channels has, None when it lives on."""


class Monitor(Protocol):
    """Something that takes QMP commands: a `Machine`, or a bare `Session`."""

    @property
    def name(self) -> str:
        """The machine's name, for messages."""
        ...

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Send one command and return what QEMU returned."""
        ...

    def subscribe(
        self, *names: str, where: Mapping[str, Any] | None = None, buffer: int = 1000
    ) -> Subscription:
        """Events called *names* whose data match *where*."""
        ...


class Screened(Monitor, Protocol):
    """A `Monitor` that knows what machine it belongs to."""

    @property
    def spec(self) -> MachineSpec:
        """The machine's spec: whether it has a display."""
        ...

    @property
    def services(self) -> ServiceNursery:
        """For tasks that live as long as the machine."""
        ...


class Changeable(Monitor, Protocol):
    """A `Monitor` of a machine whose spec follows what is done to it."""

    spec: MachineSpec
    """What it is started from the next time."""

    ledger: Ledger
    """Who is told of what is about to change, and of what came of it."""

    changing: Turn
    """Held by whoever changes it."""

    maimed: str
    """Why its QEMU can neither migrate nor be saved any more; empty as a rule."""

    is_down: bool
    """Its images are open for us alone, without the devices that a guest would see."""
