"""Asking a web server, by httpx on trio: what goes wrong is said in words, and told apart by
whether asking again may help.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from qmpkit import __version__
from qmpkit.errors import HostLacks, PullFailed
from qmpkit.images.store.sources import without_password
from qmpkit.images.store.tls import tls_context, tls_failure

if TYPE_CHECKING:
    import httpx

__all__ = ["PAUSES", "Interrupted", "Web", "ended", "web"]

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before it is asked again, each time that nothing has come."""

_SMALL = 4 << 20  # bytes of a list of checksums: Ubuntu's has some thousand
_REDIRECTS = 10
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MEANS = {
    401: "it wants a password",
    403: "it may not be had",
    404: "there is no such file",
    410: "it is there no more",
}


class Interrupted(PullFailed):
    """It may work when it is asked again."""


class Web:
    """A client for one pull; made by `web`."""

    def __init__(self, client: httpx.AsyncClient, stall: float) -> None:
        self._client = client
        self._stall = stall
        self._streams: list[Any] = []

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str], *, shown: str, trusted: bool
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, whatever it is but a refusal; its body is not read yet.

        *trusted*: what comes is checked, so that https may lead to http.
        `Interrupted` for what may help again, `PullFailed` for the rest; also within
        the block, for what goes wrong while the body is read.
        """
        traced = {"trace": self._trace}
        with self._errors(shown), self._bounded_redirects(shown):
            async with self._client.stream(
                "GET", url, headers=headers, extensions=traced
            ) as answer:
                if not trusted and _weakened(answer):
                    why = "https leads to http there, where anybody may change what comes"
                    raise PullFailed(shown, why, "name its checksums, or another address")
                _refuse(answer, shown)
                yield answer

    async def small(self, url: str, *, signed: bool) -> bytes:
        """A small file, 4 MiB at most, asked for again when it does not come."""
        for pause in (*PAUSES, None):
            try:
                return await self._small(url, signed=signed)
            except Interrupted:
                if pause is None:
                    raise
                await trio.sleep(pause)
        raise AssertionError("the last one raises")

    async def _small(self, url: str, *, signed: bool) -> bytes:
        data, shown = bytearray(), without_password(url)
        async with (
            self.get(url, {}, shown=shown, trusted=signed) as answer,
            ended(answer.aiter_bytes()) as chunks,
        ):
            async for chunk in chunks:
                data += chunk
                if len(data) > _SMALL:
                    raise PullFailed(shown, "a file of checksums is not that large")
        return bytes(data)

    async def _trace(self, event: str, told: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._streams.append(told["return_value"])

    async def _hang_up(self) -> None:
        """Close each connection: httpcore leaves one that is cancelled in its handshake open."""
        for stream in self._streams:
            # Shielded, so that a cancellation from outside does not leave the next one open.
            with trio.CancelScope(shield=True) as scope:
                scope.cancel()
                await stream.aclose()

    @contextmanager
    def _errors(self, shown: str) -> Iterator[None]:
        httpx = importlib.import_module("httpx")  # it is loaded
        try:
            yield
        except httpx.TimeoutException as error:
            why = f"the server has sent nothing for {self._stall:g} s"
            raise Interrupted(shown, why, "try again later") from error
        except httpx.ConnectError as error:
            if (failure := tls_failure(error, shown)) is not None:
                raise failure from error
            raise Interrupted(shown, f"no connection: {error}", "is the address right?") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise PullFailed(shown, f"this is no address: {error}") from error
        except httpx.TransportError as error:
            why = f"the connection broke off: {error}".rstrip(": ")
            raise Interrupted(shown, why, "try again") from error

    @contextmanager
    def _bounded_redirects(self, shown: str) -> Iterator[None]:
        httpx = importlib.import_module("httpx")
        try:
            yield
        except httpx.TooManyRedirects as error:
            why = f"the server sends on and on, more than {_REDIRECTS} times"
            raise PullFailed(shown, why) from error


@asynccontextmanager
async def ended(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of a body; whoever leaves the block early ends them in order.

    httpx reads through half a dozen generators, one in the other.  Closing the outermost
    would leave the rest to the garbage collector; what is raised by the innermost ends
    them all.
    """
    try:
        yield chunks
    finally:
        with trio.CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass


@asynccontextmanager
async def web(stall: float, ca_file: Path | None = None) -> AsyncIterator[Web]:
    """A client; *stall*: seconds without a byte after which a connection is given up.

    *ca_file*: authorities that are trusted besides this host's.  `HostLacks` without httpx.
    """
    httpx: Any = await trio.to_thread.run_sync(_httpx)
    context = await trio.to_thread.run_sync(tls_context, ca_file)
    # What is compressed is an image as its project made it, and is to stay so on the way.
    headers = {"User-Agent": f"qmpkit/{__version__}", "Accept-Encoding": "identity"}
    try:
        client = httpx.AsyncClient(
            verify=context,
            timeout=stall,
            follow_redirects=True,
            max_redirects=_REDIRECTS,
            headers=headers,
        )
    except (ImportError, ValueError) as error:  # what the environment says of proxies
        what = f"the proxy of this environment cannot be used: {error}"
        raise HostLacks(what, "see http_proxy, https_proxy and all_proxy") from error
    made = Web(client, stall)
    try:
        async with client:
            yield made
    finally:
        await made._hang_up()


def _httpx() -> Any:
    try:
        httpx = importlib.import_module("httpx")
        importlib.import_module("httpcore")  # a client would load it, in the event loop
    except ModuleNotFoundError as error:
        what = f"pulling from a URL needs {error.name}, which is not installed"
        raise HostLacks(what, "pip install 'qmpkit[images]'") from error
    return httpx


def _weakened(answer: httpx.Response) -> bool:
    schemes = [each.url.scheme for each in (*answer.history, answer)]
    return schemes[0] == "https" and "http" in schemes


def _refuse(answer: httpx.Response, shown: str) -> None:
    status = answer.status_code
    if status < 400 or status == 416:
        return
    why = f"the server says {status} {answer.reason_phrase}".rstrip()
    why = f"{why}: {_MEANS[status]}" if status in _MEANS else why
    if status in _AGAIN:
        raise Interrupted(shown, why, "try again later")
    raise PullFailed(shown, why, "is the address right?")
