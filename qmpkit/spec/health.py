"""How it is found out whether a machine does its work: plain data, judged by the supervisor.

The names are those of docker's health checks: interval, timeout, retries, start_period.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, ClassVar

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.chardev import Serial
from qmpkit.spec.given import items_of
from qmpkit.spec.network import Nic, UserNic
from qmpkit.spec.suggest import suggestion

__all__ = [
    "AgentCheck",
    "CHECK_KINDS",
    "Check",
    "ConsoleCheck",
    "FunctionCheck",
    "Health",
    "HttpCheck",
    "ProcessCheck",
    "QmpCheck",
    "TcpCheck",
    "health_faults",
    "health_needs",
    "to_checks",
    "to_health",
]


@attrs.frozen
class ProcessCheck:
    """QEMU's process is there, no zombie, and the same one as at the start."""

    kind: ClassVar[str] = "process"

    def __str__(self) -> str:
        return self.kind


@attrs.frozen
class QmpCheck:
    """QMP answers `query-status` within the timeout."""

    kind: ClassVar[str] = "qmp"

    def __str__(self) -> str:
        return self.kind


@attrs.frozen
class AgentCheck:
    """The guest agent answers `guest-ping` within the timeout."""

    kind: ClassVar[str] = "agent"

    def __str__(self) -> str:
        return self.kind


@attrs.frozen
class TcpCheck:
    """The guest's `port` takes a connection, through a forward of a user-mode NIC."""

    port: int
    kind: ClassVar[str] = "tcp"

    def __str__(self) -> str:
        return f"{self.kind}:{self.port}"


@attrs.frozen
class HttpCheck:
    """GET `path` of the guest's `port` is answered with a status from 200 to 399."""

    port: int
    path: str = "/"
    kind: ClassVar[str] = "http"

    def __str__(self) -> str:
        return f"{self.kind}:{self.port}{self.path}"


@attrs.frozen
class ConsoleCheck:
    """`text` has been seen on the console `serial` since the start: passed once, for good."""

    text: str
    serial: str = "serial0"
    kind: ClassVar[str] = "console"

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}"


@attrs.frozen
class FunctionCheck:
    """An async function of the machine that returns whether it is well; in code only.

    What it raises counts as a failure, with the exception as the reason.
    """

    call: Callable[[Any], Awaitable[bool]]
    name: str = ""
    kind: ClassVar[str] = "function"

    def __str__(self) -> str:
        return self.name or getattr(self.call, "__name__", self.kind)


Check = ProcessCheck | QmpCheck | AgentCheck | TcpCheck | HttpCheck | ConsoleCheck | FunctionCheck
CHECK_KINDS: dict[str, Callable[..., Check]] = {
    cls.kind: cls for cls in (ProcessCheck, QmpCheck, AgentCheck, TcpCheck, HttpCheck, ConsoleCheck)
}
"""Those that a file can hold."""

_KINDS = (
    ProcessCheck,
    QmpCheck,
    AgentCheck,
    TcpCheck,
    HttpCheck,
    ConsoleCheck,
    FunctionCheck,
)
_HINT = '"process", "qmp", "agent", "tcp:22", "http:80/path", "console:login:"'


def to_checks(value: Iterable[Check | str] | str) -> tuple[Check, ...]:
    """Checks, some of them as texts: "agent", "tcp:22", "http:80/path", "console:login:"."""
    texts = [value] if isinstance(value, str) else value
    checks: list[Check] = []
    faults: list[Fault] = []
    for number, item in enumerate(items_of(texts, "health.checks", _HINT, (str, *_KINDS))):
        try:
            checks.append(_to_check(item) if isinstance(item, str) else item)
        except ValueError as error:
            faults.append(Fault(f"health.checks[{number}]", str(error), _hint(item)))
    if faults:
        raise SpecInvalid(faults)
    return tuple(checks)


def _hint(item: object) -> str:
    word = str(item).partition(":")[0]
    return suggestion(word, set(CHECK_KINDS) - {word}) or _HINT


def _to_check(text: str) -> Check:
    word, colon, rest = text.partition(":")
    match word:
        case "process" | "qmp" | "agent" if not colon:
            return CHECK_KINDS[word]()
        case "tcp" if rest.isdecimal():
            return TcpCheck(int(rest))
        case "http":
            port, slash, path = rest.partition("/")
            if port.isdecimal():
                return HttpCheck(int(port), slash + path or "/")
        case "console" if rest:
            return ConsoleCheck(rest)
    raise ValueError(f"{text!r} is not a check")


@attrs.frozen(kw_only=True)
class Health:
    """`checks`, all of which have to pass.

    Each is made every `interval` seconds, until it has passed once every `start_interval`,
    and has failed when there is no answer within `timeout` seconds.  `retries` failures in
    a row make the machine unhealthy; those within `start_period` seconds of its start do
    not count, unless the check had passed before.  `restart`: an unhealthy machine is ended
    and its restart policy followed; else it is only reported.
    """

    checks: tuple[Check, ...] = attrs.field(default=(), converter=to_checks)
    interval: float = 10.0
    timeout: float = 5.0
    retries: int = 3
    start_period: float = 300.0  # a cloud image without KVM takes two minutes to its first login
    start_interval: float = 1.0
    restart: bool = True


def to_health(value: str | Check | Iterable[Check | str] | Health | None) -> Health | None:
    """One check or a list of them, with everything else as it is by default."""
    if value is None or isinstance(value, Health):
        return value
    if isinstance(value, _KINDS):
        return Health(checks=(value,))
    return Health(checks=value)


def health_faults(health: Health) -> Iterator[Fault]:
    """Numbers that make no sense, and checks that can never pass."""
    if not health.checks:
        yield Fault("health.checks", "there is none", _HINT)
    for name in ("interval", "timeout", "start_interval"):
        if not 0 < getattr(health, name) < float("inf"):
            yield Fault(f"health.{name}", "must be seconds, more than 0")
    if not 0 <= health.start_period < float("inf"):
        yield Fault("health.start_period", "must be seconds, 0 or more")
    if health.retries < 1:
        yield Fault("health.retries", "must be 1 or more")
    for number, check in enumerate(health.checks):
        yield from _check_faults(check, f"health.checks[{number}]", health.checks[:number])


def _check_faults(check: Check, where: str, before: tuple[Check, ...]) -> Iterator[Fault]:
    if str(check) in map(str, before):
        hint = "give one another name" if isinstance(check, FunctionCheck) else ""
        yield Fault(where, f"{str(check)!r} is there twice", hint)
    if isinstance(check, TcpCheck | HttpCheck) and not 1 <= check.port <= 65535:
        yield Fault(f"{where}.port", f"{check.port} is not a port")
    if isinstance(check, HttpCheck) and not _is_path(check.path):
        yield Fault(f"{where}.path", f"{check.path!r} is not a path", "/healthz")
    if isinstance(check, ConsoleCheck) and not check.text:
        yield Fault(f"{where}.text", "the text is empty, so it would be seen at once")
    if isinstance(check, FunctionCheck) and not callable(check.call):
        yield Fault(f"{where}.call", f"{check.call!r} is not a function")


def _is_path(path: str) -> bool:
    return path.startswith("/") and path.isascii() and path.isprintable() and " " not in path


def health_needs(
    health: Health, *, agent: bool, nics: Iterable[Nic], serials: Iterable[Serial]
) -> Iterator[Fault]:
    """Checks for which the machine with these parts has no way into the guest."""
    forwards = [f for nic in nics if isinstance(nic, UserNic) for f in nic.forwards]
    ports = {forward.guest for forward in forwards if forward.proto == "tcp"}
    names = [serial.name for serial in serials]
    for number, check in enumerate(health.checks):
        where = f"health.checks[{number}]"
        if isinstance(check, AgentCheck) and not agent:
            yield Fault(where, "the machine has no channel for an agent", "agent = true")
        if isinstance(check, TcpCheck | HttpCheck) and check.port not in ports:
            hint = f'a user NIC with forwards = ["0:{check.port}"]'
            yield Fault(f"{where}.port", f"no forward leads to port {check.port}", hint)
        if isinstance(check, ConsoleCheck) and check.serial not in names:
            hint = suggestion(check.serial, names)
            yield Fault(f"{where}.serial", f"there is no console {check.serial!r}", hint)
