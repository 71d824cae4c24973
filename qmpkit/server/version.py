"""Every answer says which qmpkit it is of, so that a client of another one notices."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmpkit import __version__

__all__ = ["VERSION_HEADER", "versioned"]

VERSION_HEADER = "qmpkit-version"


def versioned(app: ASGIApp) -> ASGIApp:
    """*app*, whose answers have the header."""
    own = (VERSION_HEADER.encode(), __version__.encode())

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), own]}
            await send(message)

        await app(scope, receive, say)

    return wrapped
