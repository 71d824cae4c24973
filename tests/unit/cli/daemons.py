"""A daemon that answers as a test wants, in a thread, at the place of the farm "lab"."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qmpkit import __version__

Answers = dict[str, Any]
"""What is said to "METHOD /path": text as it is, else as JSON; a function gives it each time."""


class Held(str):
    """An answer that does not end before the client hangs up."""

    __slots__ = ()


class Scripted:
    """`asked` are the requests that came, as "METHOD /path" with their JSON, oldest first."""

    def __init__(self, listener: socket.socket, answers: Answers, version: str | None) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._listener = listener
        self._answers = answers
        self._version = version

    def serve(self) -> None:
        """Until somebody connects and says nothing."""
        while True:
            client, _ = self._listener.accept()
            with client, client.makefile("rb") as lines:
                if not (first := lines.readline().decode().split()):
                    return
                answer, is_held = self._answer(first, lines)
                client.sendall(answer)
                while is_held and client.recv(1024):
                    pass

    def _answer(self, first: list[str], lines: Any) -> tuple[bytes, bool]:
        length = 0
        while line := lines.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = lines.read(length)
        asked = f"{first[0]} {first[1].partition('?')[0].removeprefix('/v1')}"
        self.asked.append((asked, json.loads(body) if body else None))
        found = self._answers[asked]
        found = found() if callable(found) else found
        said = found if isinstance(found, str) else json.dumps(found)
        version = "" if self._version is None else f"qmpkit-version: {self._version}\r\n"
        head = f"HTTP/1.1 200 OK\r\nconnection: close\r\n{version}\r\n"
        return (head + said).encode(), isinstance(found, Held)


def events(*states: tuple[str, str]) -> str:
    """What has happened to machines: each one's name and state."""
    told = [json.dumps({"machine": name, "state": state}) for name, state in states]
    return ": listening\n\n" + "".join(f"event: happening\ndata: {it}\n\n" for it in told)


def job(**result: Any) -> str:
    """The events of a job that ends at once."""
    end = {"job": "1", "what": "it", "state": "done", "result": result, "error": None}
    return f"event: end\ndata: {json.dumps(end)}\n\n"


@contextmanager
def scripted(root: Path, answers: Answers, version: str | None = __version__) -> Iterator[Scripted]:
    """A daemon of "lab", which has a state and a runtime directory in *root*; see `farm_places`."""
    runtime = root / "run" / "lab"
    (runtime / ".api").mkdir(parents=True)
    (runtime / ".state").symlink_to(root / "state" / "lab")
    path = runtime / ".api" / "http"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        daemon = Scripted(listener, answers, version)
        thread = threading.Thread(target=daemon.serve)
        thread.start()
        try:
            yield daemon
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join()
