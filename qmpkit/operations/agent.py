"""The QEMU guest agent (`qemu-guest-agent`), which does things inside the guest for us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import trio

from qmpkit.errors import AgentSilent, MachineDied, MachineGone
from qmpkit.operations import agent_files, agent_freeze, agent_info, agent_run
from qmpkit.operations._protocols import Monitor, Verdict
from qmpkit.operations.agent_files import GuestReader, GuestWriter
from qmpkit.operations.agent_info import GuestInterface, OsInfo
from qmpkit.operations.agent_link import AgentLink
from qmpkit.operations.agent_run import OnCancel
from qmpkit.operations.completed import Completed
from qmpkit.operations.errors import GuestCommandFailed

__all__ = ["Agent", "Completed", "GuestInterface", "GuestReader", "GuestWriter", "OsInfo"]
__all__ += ["ShutdownMode"]

ShutdownMode = Literal["powerdown", "halt", "reboot"]

# Without a monitor nothing tells that a guest's reboot has eaten a question: it is repeated.
_REPEAT = 5.0
# `guest-shutdown` answers only when it fails, and then soon.
_REFUSAL_GRACE = 3.0


class Agent:
    """The guest agent of one machine.

    `serve` must be running: the machine does that.  Any number of tasks may call
    at once; the agent takes one command at a time, programs run side by side.
    A cancelled command has an unknown outcome; the next one finds the place in
    the stream again by itself (`guest-sync-delimited`).

    Every method raises AgentSilent at once when no agent is running in the guest,
    also when it stops meanwhile, AgentRefused (a GuestRefused) with what the
    agent said, MachineGone when the machine has ended, MachineDied when it crashed.
    A paused or hung guest answers nothing: bound your calls with `trio.fail_after`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        name: str,
        monitor: Monitor | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        """*monitor* is the machine's QMP: by it the agent's absence is seen at once.

        Without one, calls wait for an agent that is not running until they are cancelled.
        *verdict* tells a crash of the machine from its orderly end.
        """
        self.name = name
        self._link = AgentLink(stream, name, monitor, verdict)

    async def serve(self) -> None:
        """Hold the line until the machine ends; a service of the machine's own nursery."""
        await self._link.serve()

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any:
        """Any agent command (`guest-…`), returning what the agent returned.

        One that has no reply when it succeeds (`guest-suspend-ram`) never returns.
        """
        return await self._link.execute(command, arguments, asked=f"to execute {command}")

    async def ping(self) -> None:
        """Return when the agent has answered (`guest-ping`)."""
        await self._link.execute("guest-ping", asked="to answer a ping")

    async def wait_ready(self) -> None:
        """Wait until the agent runs and answers, however long the guest takes to boot.

        Event-driven (VSERPORT_CHANGE); an answered sync and ping are the verdict.
        Raises MachineGone when the machine ends first.
        """
        asked = "to get ready"
        repeat = float("inf") if self._link.told else _REPEAT
        while True:
            await self._link.opened(asked)
            with trio.move_on_after(repeat):
                try:
                    return await self._link.execute("guest-ping", asked=asked)  # type: ignore[no-any-return]
                except AgentSilent:
                    continue  # closed again: a guest that reboots

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        check: bool = False,
        on_cancel: OnCancel = "kill",
    ) -> Completed:
        """Run a program in the guest, no shell, and wait for its end (`guest-exec`).

        `argv[0]` is searched in the agent's PATH.  *env*, when given, is the whole
        environment.  *input* is what it reads on stdin, up to 47 MiB; a program that ends
        with more than 64 KiB of it unread leaves qemu-ga (7.2) busy, so give a file
        instead.  Up to 16 MiB each of stdout and stderr are kept, see
        `Completed.truncated`.  With *check* another end than status 0 raises
        GuestCommandFailed.

        Cancelled, the program (not its children) is killed, or left running with
        `on_cancel="leave"`.  A guest that does not answer delays that by 2 s at most;
        its program is killed when it answers, if the machine is still ours by then.
        """
        stdin = input.encode() if isinstance(input, str) else input
        completed = await agent_run.run(self._link, argv, stdin, env, on_cancel)
        if check and not completed.ok:
            raise GuestCommandFailed(self.name, completed)
        return completed

    async def read_file(self, path: str, *, limit: int = 256 * 1024 * 1024) -> bytes:
        """The content of a file in the guest (`guest-file-read`).

        A file longer than *limit* bytes raises AgentRefused: `/dev/zero` has no end.
        """
        return await agent_files.read_file(self._link, path, limit)

    async def write_file(self, path: str, data: bytes | str, *, append: bool = False) -> None:
        """Make or replace a file in the guest (`guest-file-write`), or append to it.

        The data are in the guest's page cache then, not yet on its disk.  Failed or
        cancelled, a part may have been written; the file is closed.
        """
        raw = data.encode() if isinstance(data, str) else data
        await agent_files.write_file(self._link, path, raw, append)

    def reading(self, path: str) -> AbstractAsyncContextManager[GuestReader]:
        """`async with agent.reading(path) as file:` a file of any length, part by part.

        `await file.read()` gives the next part, empty at the end.
        """
        return agent_files.reading(self._link, path)

    def writing(
        self, path: str, *, append: bool = False
    ) -> AbstractAsyncContextManager[GuestWriter]:
        """`async with agent.writing(path) as file:` make, replace or append to a file.

        `await file.write(data)` as often as you like; as for `write_file`, what fails or is
        cancelled may have been written in part.
        """
        return agent_files.writing(self._link, path, append)

    async def shutdown(self, mode: ShutdownMode = "powerdown") -> None:
        """Ask the guest to power down, halt or reboot (`guest-shutdown`), and return.

        The guest says nothing when it obeys.  This returns when its agent or the
        machine has ended, or after 3 s without a refusal; `vm.wait()` tells the rest.
        Needs `/sbin/shutdown` in the guest.
        """
        asked = f"to {mode.replace('powerdown', 'power down')}"
        await self._link.session(asked)
        with trio.move_on_after(_REFUSAL_GRACE):
            try:
                await self._link.execute("guest-shutdown", {"mode": mode}, asked=asked)
            except (AgentSilent, MachineGone, MachineDied):
                return

    def frozen(self, *, longest: float = 10.0) -> AbstractAsyncContextManager[int]:
        """`async with agent.frozen():` the guest's file systems are flushed and stand still.

        Gives how many they are (`guest-fsfreeze-freeze`).  They are thawed however the
        block ends, and also when it takes more than *longest* seconds, which ends it with
        GuestRefused.
        """
        return agent_freeze.frozen(self._link, longest)

    async def thaw(self) -> None:
        """Let frozen file systems go on (`guest-fsfreeze-thaw`); fine when none is."""
        await agent_freeze.thaw(self._link)

    async def os_info(self) -> OsInfo:
        """The guest's operating system and kernel (`guest-get-osinfo`)."""
        reply = await self._link.execute("guest-get-osinfo", asked="to tell its OS")
        with self._link.understood("guest-get-osinfo"):
            return agent_info.os_info_from(reply)

    async def host_name(self) -> str:
        """The guest's host name (`guest-get-host-name`)."""
        reply = await self._link.execute("guest-get-host-name", asked="to tell its host name")
        with self._link.understood("guest-get-host-name"):
            return str(reply["host-name"])

    async def interfaces(self) -> tuple[GuestInterface, ...]:
        """The guest's network interfaces and addresses (`guest-network-get-interfaces`)."""
        command = "guest-network-get-interfaces"
        reply = await self._link.execute(command, asked="to list its network interfaces")
        with self._link.understood(command):
            return agent_info.interfaces_from(reply)
