"""The client of a farm's daemon: HTTP over its unix socket, errors as exceptions."""

from __future__ import annotations

import grp
import http.client
import json
import shlex
import socket
import stat
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from qmpkit import __version__
from qmpkit.cli.exits import DaemonSaid, Refusal
from qmpkit.cli.talk import talk
from qmpkit.cli.which_farm import which_farm
from qmpkit.errors import QmpkitError
from qmpkit.server.door import doors

__all__ = ["Daemon", "DaemonAbsent", "DaemonSilent", "NoDaemon", "absent"]
__all__ += ["farm_daemon", "find_daemon"]

Body = bytes | Iterator[bytes]
"""An iterator's parts are sent as they come."""

_VERSION_HEADER = "qmpkit-version"
_PATIENCE = 30.0
"""Seconds that a daemon has to begin an answer that is not a stream."""


class DaemonAbsent(QmpkitError):
    """No daemon of the farm answers."""


class NoDaemon(DaemonAbsent):
    """None runs: nobody listens where it would."""


class DaemonSilent(DaemonAbsent):
    """Somebody has the socket, and says nothing: no other daemon could have the farm."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if self.timeout is not None:
            bound = struct.pack("ll", *divmod(int(self.timeout * 1e6), 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
        try:
            # Without Python's timeout: with it the kernel refuses at once when many wait there.
            self.sock.connect(str(self._path))
        except BlockingIOError as error:
            raise TimeoutError("nobody has taken the connection in") from error
        self.sock.settimeout(self.timeout)

    def answer_to(self, method: str, target: str, body: Body) -> http.client.HTTPResponse:
        """Send a request; the answer's end is the connection's."""
        try:
            try:
                self.request(method, target, body or None)
            except (BrokenPipeError, ConnectionResetError):
                if self.sock is None:
                    raise
                # It was answered before all of it was there: that answer says why.
            response = self.getresponse()
            if self.sock is not None:
                self.sock.close()  # the response holds it open
                self.sock = None
        except BaseException:
            self.close()
            raise
        return response


class Daemon:
    """The daemon that listens at *path*; each request has a connection of its own.

    Everything raises DaemonAbsent when nobody answers (NoDaemon when none runs) and
    DaemonSaid for the daemon's errors.  Blocking.
    """

    def __init__(self, farm: str, path: Path) -> None:
        self.farm = farm
        self.path = path

    def get(self, *steps: str, **query: str | int) -> Any:
        """GET a path as JSON."""
        return json.loads(self.raw("GET", *steps, query=query))

    def post(
        self,
        *steps: str,
        body: object = None,
        timeout: float | None = _PATIENCE,
        **query: str | int,
    ) -> Any:
        """POST *body* as JSON."""
        content = json.dumps({} if body is None else body).encode()
        return json.loads(self.raw("POST", *steps, body=content, query=query, timeout=timeout))

    def delete(self, *steps: str, **query: str | int) -> Any:
        """DELETE a path."""
        return json.loads(self.raw("DELETE", *steps, query=query))

    def raw(
        self,
        method: str,
        *steps: str,
        body: Body = b"",
        query: dict[str, str | int] | None = None,
        timeout: float | None = _PATIENCE,
    ) -> bytes:
        """Any request; the answer's body.  *timeout*: seconds of silence, None: no bound."""
        with self.open(method, *steps, body=body, query=query, timeout=timeout) as response:
            try:
                return response.read()
            except (OSError, http.client.HTTPException) as error:
                raise self._vanished(error) from error

    def open(
        self,
        method: str,
        *steps: str,
        body: Body = b"",
        query: dict[str, str | int] | None = None,
        timeout: float | None = _PATIENCE,
    ) -> http.client.HTTPResponse:
        """Any request; the answer, to be read."""
        connection = _Connection(self.path, timeout)
        try:
            response = connection.answer_to(method, self.target(*steps, query=query), body)
            _compare(self.farm, self.path, response.headers.get(_VERSION_HEADER))
            if response.status < 400:
                return response
            with response:
                said = json.loads(response.read())
            raise DaemonSaid(said["error"])
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise absent(self.farm) from error
        except PermissionError as error:
            what = f"you may not use the daemon of farm {self.farm!r} ({self.path})"
            raise Refusal(f"{what}. Cure: be its user, or a member of its --group") from error
        except TimeoutError as error:
            what = f"the daemon of farm {self.farm!r} says nothing for {timeout:g} s"
            raise DaemonSilent(
                f"{what}. Cure: end it and start another; machines live on"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._vanished(error) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DaemonAbsent(f"what answers at {self.path} is no daemon of qmpkit's") from error

    def part_of(self, response: http.client.HTTPResponse, most: int) -> bytes:
        """The next part of an answer as it comes; empty at its end."""
        try:
            return response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise self._vanished(error) from error

    def events(self, *steps: str, **query: str | int) -> Iterator[tuple[str, Any]]:
        """Server-sent events from this moment on: each one's name and data.

        A comment, by which the daemon says that it lives, is ("", None).
        """
        return self._read_events(self.open("GET", *steps, query=query, timeout=None))

    def _read_events(self, response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
        name, data = "", ""
        with response:
            try:
                for raw in response:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        data = line.removeprefix("data: ")
                    elif line.startswith(":"):
                        yield "", None
                    elif not line and data:
                        yield name, json.loads(data)
                        name, data = "", ""
            except (OSError, http.client.HTTPException) as error:
                raise self._vanished(error) from error

    def target(self, *steps: str, query: dict[str, str | int] | None = None) -> str:
        """A path with its query; no step can leave its place."""
        path = "/".join(quote(step, safe="") for step in ("v1", *steps))
        return f"/{path}?{urlencode(query)}" if query else f"/{path}"

    def ended(self, how: str = "has ended") -> DaemonAbsent:
        """What is to be raised of one that is gone before it has said all."""
        start = f"`qmpkit serve --farm {shlex.quote(self.farm)} --detach`"
        cure = f"{start} starts another, and its log tells why; machines live on"
        return DaemonAbsent(f"the daemon of farm {self.farm!r} {how}. Cure: {cure}")

    def _vanished(self, error: BaseException) -> DaemonAbsent:
        # What http.client makes of it ("IncompleteRead(0 bytes read)") says no more.
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        return self.ended(f"has gone while it answered{why}")


@cache
def _compare(farm: str, path: Path, version: str | None) -> None:
    """Say once that a daemon is another qmpkit's than this command."""
    if version == __version__:
        return
    its = "an earlier qmpkit" if version is None else f"qmpkit {version}"
    words = f"qmpkit serve --farm {shlex.quote(farm)}{_group_again(path)} --replace --detach"
    cure = f"`{words}`, or restart its service"
    talk.warn(
        f"the daemon of farm {farm!r} is {its}, and this command is {__version__}: not all may "
        f"work. Cure: {cure}; machines live on"
    )


def _group_again(path: Path) -> str:
    """What has the next daemon open to whom this one is: its socket tells."""
    try:
        found = path.stat()
        name = grp.getgrgid(found.st_gid).gr_name if found.st_mode & stat.S_IWGRP else ""
    except (OSError, KeyError):
        return " [--group ITS-GROUP]"
    return f" --group {shlex.quote(name)}" if name else ""


def absent(farm: str) -> NoDaemon:
    """Nobody listens."""
    cure = f"`qmpkit serve --farm {shlex.quote(farm)} --detach`, or `qmpkit up FILE`, starts one"
    return NoDaemon(f"no daemon runs for farm {farm!r}. Cure: {cure}")


def find_daemon(farm: str) -> Daemon:
    """The daemon of *farm*; raises NoDaemon when there is no socket of one."""
    found = [path for path in doors(farm) if _may_be(path)]
    if not found:
        raise absent(farm)
    # Where one was killed its socket is left; another may listen at the other place.
    return Daemon(farm, next(filter(_listens, found), found[0]) if len(found) > 1 else found[0])


def farm_daemon(given: str | None) -> Daemon:
    """The daemon of the farm that `which_farm` finds; Refusal, NoDaemon."""
    return find_daemon(which_farm(given))


def _may_be(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:  # it is there, and connecting says what is wrong
        return True


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:  # so many are waiting there
            return True
        except OSError:
            return False
    return True
