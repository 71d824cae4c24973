"""A guest that is only pretended: its agent, and the QEMU that sees the agent's port."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.operations.agent import Agent
from qmpkit.qmp.opening import open_session
from qmpkit.testing.fake import FakeQemu, Refuse, fake_qemu


def b64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


@attrs.define
class Program:
    """One program in the guest: what it answers, and after how many questions it has ended."""

    path: str
    request: dict[str, Any]
    questions: float
    ending: dict[str, Any]


class Guest:
    """Programs and files as qemu-guest-agent shows them.

    `cat` gives its input back, `fail` ends with status 3, `crash` by a signal, `flood`
    with truncated output, `sleep` never ends but by `kill`.
    """

    def __init__(self, fake: FakeQemu) -> None:
        self.fake = fake
        self.programs: dict[int, Program] = {}
        self.files: dict[str, bytes | bytearray] = {}
        self.handles: dict[int, list[Any]] = {}
        self.largest_read = 0
        self.largest_write = 1 << 30
        for name in dir(self):
            if name.startswith("do_"):
                fake.on("guest-" + name[3:].replace("_", "-"), getattr(self, name))

    def do_exec(self, request: dict[str, Any]) -> dict[str, int]:
        path = request["path"]
        stdin = base64.b64decode(request.get("input-data", ""))
        endings: dict[str, dict[str, Any]] = {
            "cat": {"exitcode": 0, "out-data": b64(stdin)},
            "fail": {"exitcode": 3, "err-data": b64(b"it is broken\n")},
            "crash": {"signal": 11},
            "flood": {"exitcode": 0, "out-data": b64(b"y"), "out-truncated": True},
            "sleep": {"exitcode": 0},
            "kill": {"exitcode": 0},
            "garbled": {"exitcode": "zero"},
        }
        if path not in endings:
            raise Refuse(f"Failed to execute child process “{path}” (No such file or directory)")
        if path == "kill":
            self.programs[int(request["arg"][1])].questions = 0
        pid = 100 + len(self.programs)
        questions = float("inf") if path == "sleep" else 2
        self.programs[pid] = Program(path, request, questions, endings[path])
        return {"pid": pid}

    def do_exec_status(self, request: dict[str, Any]) -> dict[str, Any]:
        program = self.programs[request["pid"]]
        program.questions -= 1
        if program.questions > 0:
            return {"exited": False}
        program.path = f"({program.path} has ended)"
        return {"exited": True, **program.ending}

    def do_file_open(self, request: dict[str, Any]) -> int:
        path, mode = request["path"], request["mode"]
        if mode == "r" and path not in self.files:
            raise Refuse(f"failed to open file '{path}' (mode: 'r'): No such file or directory")
        if mode == "w" or path not in self.files:
            self.files[path] = bytearray()
        handle = 1000 + len(self.fake.calls)
        self.handles[handle] = [path, 0]
        return handle

    def do_file_close(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.handles.pop(request["handle"], None) is None:
            raise Refuse("handle not found")
        return {}

    def do_file_read(self, request: dict[str, Any]) -> dict[str, Any]:
        path, at = self.handles[request["handle"]]
        data = self.files[path][at : at + request["count"]]
        self.handles[request["handle"]][1] += len(data)
        self.largest_read = max(self.largest_read, len(data))
        return {"count": len(data), "buf-b64": b64(data), "eof": len(data) < request["count"]}

    def do_file_seek(self, request: dict[str, Any]) -> dict[str, Any]:
        path, _ = self.handles[request["handle"]]
        if path == "/pipe":
            raise Refuse("failed to seek file: Illegal seek")
        position = len(self.files[path]) if request["whence"] == "end" else request["offset"]
        self.handles[request["handle"]][1] = position
        return {"position": position, "eof": False}

    def do_file_write(self, request: dict[str, Any]) -> dict[str, Any]:
        path, _ = self.handles[request["handle"]]
        data = base64.b64decode(request["buf-b64"])[: self.largest_write]
        self.files[path] += data
        return {"count": len(data), "eof": False}


class Port:
    """What the fake QEMU knows of the agent's port."""

    def __init__(self, qemu: FakeQemu, *, listening: bool) -> None:
        self.qemu = qemu
        self.listening = listening
        qemu.on("query-chardev", lambda _: self._chardevs())

    def _chardevs(self) -> list[dict[str, Any]]:
        return [
            {"label": "qk-qmp", "filename": "socket", "frontend-open": True},
            {"label": "qk-agent", "filename": "socket", "frontend-open": self.listening},
        ]

    def turn(self, *, listening: bool) -> None:
        """The guest opens or closes the port."""
        self.listening = listening
        self.qemu.emit("VSERPORT_CHANGE", {"id": "agent0", "open": listening})


@asynccontextmanager
async def agent_alone() -> AsyncIterator[tuple[Agent, Guest]]:
    """An agent without a monitor: nothing tells whether anybody listens."""
    async with fake_qemu(kind="agent") as fake, service_nursery() as services:
        agent = Agent(fake.dial(), name="web")
        services.start_soon(agent.serve)
        yield agent, Guest(fake)


@asynccontextmanager
async def agent_of_a_machine(*, listening: bool = True) -> AsyncIterator[tuple[Agent, Guest, Port]]:
    """An agent whose port QEMU watches."""
    async with (
        fake_qemu() as qemu,
        open_session(qemu.dial(), name="web") as monitor,
        fake_qemu(kind="agent") as fake,
        service_nursery() as services,
    ):
        port = Port(qemu, listening=listening)
        agent = Agent(fake.dial(), name="web", monitor=monitor)
        services.start_soon(agent.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield agent, Guest(fake), port
