"""Answers of the API: JSON, and every error as one, translated in this one place."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qmpkit._trio import service_nursery
from qmpkit.errors import (
    HostLacks,
    ImageFailed,
    ImageInUse,
    LaunchFailed,
    MachineGone,
    MachineMoving,
    QmpkitError,
    SpecInvalid,
)

__all__ = ["NotUp", "Refused", "answer", "error_body", "on_error"]

log = logging.getLogger("qmpkit.server")


class Refused(QmpkitError):
    """A request that the API does not take; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


class NotUp(QmpkitError):
    """What is asked of a machine takes a QEMU, and none answers: why, and whether one comes."""

    def __init__(self, machine: str, state: str, cause: str, *, rests: bool) -> None:
        self.machine = machine
        self.state = state
        self.cause = cause
        self.rests = rests
        super().__init__(machine, state, cause)

    @property
    def _is_away(self) -> bool:
        """Whether nobody knows where it is after a move: then nothing starts it."""
        return self.state == "unknown"

    def __str__(self) -> str:
        why = f": {self.cause}" if self.cause else ""
        what = "wait" if not self.rests else "migrate --settle" if self._is_away else "start"
        cure = f"`qmpkit {what} {self.machine}`, and ask again"
        return f"machine {self.machine!r} is {self.state}{why}. Cure: {cure}"


class _Ascii(JSONResponse):
    """Whatever is told can be sent: a name that is not UTF-8, or half a character of a client's."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def answer(content: object, status: int = 200) -> Response:
    """*content* as JSON, of ASCII alone."""
    return _Ascii(content, status)


def error_body(error: BaseException) -> dict[str, Any]:
    """An error as data: its kind with those it is a kind of, its message, its faults.

    Of a failure of files its cause, by which a client tells a mistake in a name from a full disk.

    Of what nobody has foreseen only the kind: the rest is in the log.
    """
    kinds = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, QmpkitError)]
    if isinstance(error, BaseExceptionGroup):
        inner = [error_body(one) for one in error.exceptions]
        return {"kinds": inner[0]["kinds"], "message": "\n".join(one["message"] for one in inner)}
    if not kinds:
        return {"kinds": [type(error).__name__], "message": "a bug in qmpkit: see the daemon's log"}
    body: dict[str, Any] = {"kinds": kinds, "message": _message(error)}
    if isinstance(error, ImageFailed) and isinstance(error.__cause__, OSError):
        body["cause"] = type(error.__cause__).__name__
    if isinstance(error, SpecInvalid):
        body["faults"] = [
            {"path": fault.path, "message": fault.message, "hint": fault.hint}
            for fault in error.faults
        ]
    return body


def _message(error: BaseException) -> str:
    if isinstance(error, LaunchFailed):
        return f"{error.brief}\n(The daemon's log has QEMU's command.)"
    return str(error)


async def on_error(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    body = error_body(error)
    status = _status(error)
    if status == 500:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _Unread(answer({"error": body}, status))  # type: ignore[return-value]


class _Unread:
    """An answer to a request whose body nobody wants any more.

    hypercorn closes the connection only when it has queued that for the application, and
    the queue may be full of the body: it is emptied meanwhile.
    """

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with service_nursery() as services:
            services.start_soon(_drain, receive)
            await self._response(scope, receive, send)


async def _drain(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_STATUSES: Mapping[type[BaseException], int] = {
    SpecInvalid: 400,
    ImageInUse: 409,
    MachineGone: 409,
    MachineMoving: 409,
    NotUp: 409,
    HostLacks: 503,
    QmpkitError: 502,
}


def _status(error: BaseException) -> int:
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, BaseExceptionGroup):
        return max(_status(one) for one in error.exceptions)
    return next((code for cls, code in _STATUSES.items() if isinstance(error, cls)), 500)
