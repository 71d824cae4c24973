"""A client that says exactly what a test wants, over a real unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio


class Client:
    """Requests from worker threads, so that the daemon under test goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def ask(
        self, method: str, target: str, body: object = None, *, raw: bytes | None = None
    ) -> tuple[int, Any]:
        """The status, and the answer: JSON if it is that, else bytes."""
        content = json.dumps(body).encode() if raw is None and body is not None else raw
        return await trio.to_thread.run_sync(self._ask, method, target, content)

    def _ask(self, method: str, target: str, content: bytes | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = self.connected()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it is answered already
                connection.request(method, target, content)
            response = connection.getresponse()
            said = response.read()
        finally:
            connection.close()
        if response.headers.get("content-type") == "application/json":
            return response.status, json.loads(said)
        return response.status, said

    async def done(self, method: str, target: str, body: object = None) -> dict[str, Any]:
        """Ask for a job, and wait for its end."""
        status, job = await self.ask(method, target, body)
        assert status == 202, job
        _, said = await self.ask("GET", f"/v1/jobs/{job['job']}/events")
        last: dict[str, Any] = json.loads(said.decode().rstrip().rsplit("data: ", 1)[1])
        return last

    def connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.path))
        return sock

    @contextmanager
    def listening(self, target: str) -> Iterator[Any]:
        """A stream that is being read, or not."""
        with self.connected() as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            yield sock
