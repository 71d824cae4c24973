"""Why a kept machine is not started, or not what it was declared."""

from __future__ import annotations

from qmpkit.errors import QmpkitError

__all__ = ["LeftAlone", "StartBlocked", "StartCalledOff"]


class StartBlocked(QmpkitError):
    """A machine requires another that is down and will not come up by itself."""

    def __init__(self, machine: str, why: str) -> None:
        self.machine = machine
        self.why = why
        super().__init__(machine, why)

    def __str__(self) -> str:
        return f"machine {self.machine!r} cannot start: {self.why}"


class StartCalledOff(QmpkitError):
    """A machine was declared stopped before its turn to start had come."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        super().__init__(machine)

    def __str__(self) -> str:
        return f"the start of machine {self.machine!r} was called off: it is declared stopped"


class LeftAlone(QmpkitError):
    """A supervisor ends, and leaves a kept machine to the next one; `awaited` has not come yet."""

    def __init__(self, machine: str, awaited: str) -> None:
        self.machine = machine
        self.awaited = awaited
        super().__init__(machine, awaited)

    def __str__(self) -> str:
        return (
            f"the supervisor of machine {self.machine!r} ends before it {self.awaited}: "
            "it is left to the next one"
        )
