"""The source of a migration, by its monitor alone, which says what a test wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from qmpkit.qmp.events import EventHub, Subscription

__all__ = ["Source"]


class Source(ABC):
    """Answers `query-migrate` with `answer`; all else goes to `asked`."""

    name = "mover"

    def __init__(self, status: str) -> None:
        self.answer: dict[str, Any] = {"status": status}
        self.hub = EventHub(self.name)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        if command == "query-migrate":
            return self.answer
        self.asked(command, arguments or {}, oob=oob)
        return {}

    @abstractmethod
    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        """What it does of a command."""

    def subscribe(self, *names: str) -> Subscription:
        return Subscription(self.hub, names, None, 100)

    def say(self, status: str) -> None:
        self.hub.publish({"event": "MIGRATION", "data": {"status": status}}, 0.0)
