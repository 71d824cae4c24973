"""A web server on this host that serves what a test gives it, as well or as badly as it says;
and what a pull from it has left.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs

from qmpkit.images import Store

__all__ = ["Page", "Server", "left", "serving"]


@attrs.define(kw_only=True)
class Page:
    """One file.  Each of the lists is used up from the front, one entry for each request.

    `cut`: send only so many bytes of the body, then close.  `status`: answer so instead.
    `stall`: send so many bytes, then nothing more.  `ranges`, `etag`: whether there are any.
    `length`: whether Content-Length is told.  `moved`: where it is instead.
    """

    body: bytes = b""
    cut: list[int] = attrs.field(factory=list)
    status: list[int] = attrs.field(factory=list)
    stall: list[int] = attrs.field(factory=list)
    ranges: bool = True
    etag: bool = True
    length: bool = True
    moved: str = ""
    claimed: int | None = None

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"' if self.etag else ""


class Server:
    """`pages` by path; `asked`: each request's path and Range, in order."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.ended = threading.Event()
        self.address = ""

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    def clients(self) -> int:
        """Connections to this server that somebody has open."""
        port = f":{int(self.address.rpartition(':')[2]):04X}"
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[2].endswith(port) and row[3] == "01" for row in rows)

    def put(self, path: str, body: bytes, **how: Any) -> str:
        self.pages[path] = Page(body=body, **how)
        return self.url(path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ours: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.ours
        server.asked.append((self.path, self.headers.get("Range", "")))
        page = server.pages.get(self.path)
        if page is None:
            self._empty(404)
        elif page.status and (status := page.status.pop(0)):
            self._empty(status)
        elif page.moved:
            self._empty(302, Location=page.moved)
        elif page.tag and self.headers.get("If-None-Match") == page.tag:
            self._empty(304)
        else:
            self._send(page)

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, page: Page) -> None:
        start = self._start(page)
        total = len(page.body)
        if start is not None and start >= total:
            self._empty(416)
            return
        body = page.body[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if page.tag:
            self.send_header("ETag", page.tag)
        if page.length:
            self.send_header("Content-Length", str(page.claimed or len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        self._body(page, body)

    def _start(self, page: Page) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not page.ranges:
            return None
        if self.headers.get("If-Range") not in (None, page.tag):
            return None
        return int(asked[1])

    def _body(self, page: Page, body: bytes) -> None:
        stall = page.stall.pop(0) if page.stall else -1
        cut = page.cut.pop(0) if page.cut else -1
        end = stall if stall >= 0 else cut if cut >= 0 else len(body)
        try:
            self.wfile.write(body[:end])
            self.wfile.flush()
        except OSError:
            return
        finally:
            self.ours.sent += min(end, len(body))
        if stall >= 0:
            self.ours.ended.wait(30)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has no trust in us ends the connection, which is what is tested."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    ours = Server()
    handler = type("Handler", (_Handler,), {"ours": ours})
    http = _Http(("127.0.0.1", 0), handler)
    http.tls = tls
    ours.address = f"{'https' if tls else 'http'}://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield ours
    finally:
        ours.ended.set()
        http.shutdown()
        thread.join()
        http.server_close()


def left(store: Store) -> set[str]:
    """What is there beside whole images: pulls, drafts."""
    return {path.name for path in store.path.rglob("*") if "partial" in path.parts[:-1]}
