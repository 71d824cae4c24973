"""What can go wrong on a QMP or guest-agent stream.

Each class is one of ours and one of qemu.qmp's, so that code written for
qemu.qmp keeps catching what it caught.
"""

from __future__ import annotations

from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, Message
from qemu.qmp.error import ProtocolError
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ServerParseError

from qmpkit.errors import QmpkitError

__all__ = [
    "CommandRefused",
    "EventsLost",
    "MonitorAbsent",
    "MonitorBusy",
    "MonitorGarbled",
    "MonitorLost",
    "MonitorMisread",
    "MonitorSilent",
    "MonitorTorn",
]


class CommandRefused(QmpkitError, ExecuteError):
    """QEMU understood the command and answered with an error.

    `error_class` is QMP's class (`GenericError`, `DeviceNotFound`, …) and `desc`
    its sentence; `machine` and `command` say who was asked for what.  `cure` is set by
    whoever knows one.
    """

    def __init__(
        self, machine: str, command: str, arguments: dict[str, Any], reply: dict[str, Any]
    ) -> None:
        self.machine = machine
        self.command = command
        self.arguments = arguments
        sent = Message({"execute": command, "arguments": arguments})
        received = Message(reply)
        ExecuteError.__init__(self, ErrorResponse(received), sent, received)
        self.args = (machine, command, arguments, reply)
        self.desc: str = reply["error"]["desc"]
        self.cure = ""

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        said = f"{self.desc} [{self.error_class}]"
        return f"machine {self.machine!r} refused {self.command}: {said}{cure}"


class MonitorLost(QmpkitError, ExecInterruptedError):
    """The stream ended; a command that was under way has an unknown outcome."""

    def __init__(self, machine: str, why: str) -> None:
        self.machine = machine
        self.why = why
        Exception.__init__(self, machine, why)

    def __str__(self) -> str:
        return f"machine {self.machine!r}: the monitor connection is gone: {self.why}"


class MonitorTorn(MonitorLost):
    """The stream ended inside a message, whose first bytes are `received`."""

    def __init__(self, machine: str, received: bytes) -> None:
        super().__init__(machine, f"it ended inside a message that began {received[:200]!r}")
        self.received = received[:200]
        self.args = (machine, self.received)


class MonitorGarbled(QmpkitError, ProtocolError):
    """The peer broke the protocol; the stream cannot be trusted any more."""

    def __init__(self, machine: str, why: str, received: bytes = b"") -> None:
        self.machine = machine
        self.why = why
        self.received = received[:200]
        Exception.__init__(self, machine, why, self.received)

    def __str__(self) -> str:
        got = f"; received {self.received!r}" if self.received else ""
        return f"machine {self.machine!r}: the monitor broke the protocol: {self.why}{got}"


class MonitorMisread(MonitorGarbled, ServerParseError):
    """QEMU could not parse what we sent, and does not say which command it was.

    What a broken stream gives, and arguments beyond QEMU's limits (64 MiB of
    text, 1024 levels).  The outcome of every command under way is unknown.
    """

    def __init__(self, machine: str, desc: str, received: bytes = b"") -> None:
        MonitorGarbled.__init__(self, machine, f"it could not parse a command: {desc}", received)
        self.desc = desc
        self.msg = Message({"error": {"class": "GenericError", "desc": desc}})
        self.args = (machine, desc, self.received)


class MonitorAbsent(QmpkitError, ConnectError):
    """Nothing listens where a monitor was expected; `path` is where."""

    def __init__(self, path: str, why: str, cure: str = "") -> None:
        self.path = path
        self.why = why
        self.cure = cure
        Exception.__init__(self, path, why, cure)

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"no QMP monitor at {self.path!r}: {self.why}{cure}"


class MonitorSilent(QmpkitError, ConnectError):
    """Connected, but no greeting came within the bound: QEMU is wedged."""

    def __init__(self, machine: str, waited: float, cure: str = "") -> None:
        self.machine = machine
        self.waited = waited
        self.cure = cure
        Exception.__init__(self, machine, waited, cure)

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"machine {self.machine!r}: no QMP greeting within {self.waited:g} s{cure}"


class MonitorBusy(MonitorSilent):
    """Connected, but another client holds the monitor: it serves one at a time."""

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"machine {self.machine!r}: the QMP monitor is held by another client{cure}"


class EventsLost(QmpkitError):
    """A subscriber read too slowly: its buffer filled and events were dropped for it alone.

    `source` says whose events they were when not one machine's (`machine` is "" then).
    """

    def __init__(self, machine: str, names: tuple[str, ...], buffer: int, source: str = "") -> None:
        self.machine = machine
        self.names = names
        self.buffer = buffer
        self.source = source
        super().__init__(machine, names, buffer, source)

    def __str__(self) -> str:
        whose = self.source or f"machine {self.machine!r}"
        what = ", ".join(self.names) or "all events"
        return (
            f"{whose}: a subscriber of {what} fell more than "
            f"{self.buffer} events behind. Cure: read faster or subscribe with a larger buffer"
        )
