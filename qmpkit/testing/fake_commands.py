"""What the fake answers when nothing else was asked of it: a small QEMU with a run state."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import trio

__all__ = ["CommandTable", "Refuse"]


class Refuse(Exception):
    """Answer with an error of this description and QMP class."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        self.desc = desc
        self.error_class = error_class
        super().__init__(desc, error_class)


_RUNNABLE = {"prelaunch", "paused", "running", "restore-vm", "io-error"}
_EMPTY_LISTS = (
    "query-block",
    "query-blockstats",
    "query-chardev",
    "query-cpus-fast",
    "query-hotpluggable-cpus",
    "query-iothreads",
    "query-jobs",
    "query-memory-devices",
    "query-migrate-capabilities",
    "query-named-block-nodes",
    "query-pci",
)
_ACCEPTED = (
    "balloon",
    "blockdev-add",
    "blockdev-del",
    "chardev-add",
    "device_add",
    "device_del",
    "netdev_add",
    "netdev_del",
    "object-add",
    "object-del",
    "screendump",
    "send-key",
    "input-send-event",
    "inject-nmi",
)


class CommandTable(ABC):
    """The state of the machine that the fake plays, and the commands that change it.

    `status` is its run state; `ended` is set when it has quit or crashed, with
    `exit_code` (None: killed or crashed); `obeys_powerdown` is whether its guest
    heeds the power button; `pauses_on_shutdown` is `-action shutdown=pause`, `uuid` what
    `query-uuid` answers.
    """

    def __init__(self) -> None:
        self.status = "prelaunch"
        self.obeys_powerdown = True
        self.pauses_on_shutdown = False
        self.uuid = "00000000-0000-0000-0000-000000000000"
        self._afterwards: list[Callable[[], None]] = []
        self.exit_code: int | None = None
        self.ended = trio.Event()
        self.named_fds: dict[str, int] = {}
        self._fdsets: list[tuple[int, int]] = []

    @abstractmethod
    def emit(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Send an event now, to the client there is."""

    def run(self, command: str, arguments: dict[str, Any], fds: list[int]) -> Any:
        """Carry out *command*; *fds* are descriptors that came and that it may take."""
        if command in _EMPTY_LISTS:
            return []
        if command in _ACCEPTED:
            return {}
        method = getattr(self, "_do_" + command.replace("-", "_"), None)
        if method is None:
            raise Refuse(f"The command {command} has not been found", "CommandNotFound")
        if command in ("getfd", "add-fd"):
            return method(arguments, fds)
        return method(arguments)

    def settle(self) -> None:
        """Do what comes after the reply: QEMU answers `quit` before it ends."""
        while self._afterwards:
            self._afterwards.pop(0)()

    def after_reply(self, action: Callable[[], None]) -> None:
        """Do *action* when the reply to the command at hand has been sent."""
        self._afterwards.append(action)

    # --- what a guest or the host does to it

    def guest_shutdown(self) -> None:
        """The guest powers itself off."""
        self._shut_down("guest-shutdown", guest=True)

    def guest_reset(self) -> None:
        """The guest reboots itself."""
        self.emit("RESET", {"guest": True, "reason": "guest-reset"})

    def guest_panic(self) -> None:
        """The guest's kernel panics; the machine pauses, as with `-action panic=pause`."""
        self.status = "guest-panicked"
        self.emit("GUEST_PANICKED", {"action": "pause"})
        self.emit("STOP")

    def crash(self) -> None:
        """QEMU dies at once, without a word."""
        self._end(None)

    def close_fds(self) -> None:
        """Close what `getfd` and `add-fd` have taken."""
        for fd in [*self.named_fds.values(), *(fd for _, fd in self._fdsets)]:
            os.close(fd)
        self.named_fds.clear()
        self._fdsets.clear()

    @abstractmethod
    def hang_up(self) -> None:
        """End the client's stream once everything said so far has left."""

    def _end(self, code: int | None) -> None:
        self.exit_code = code
        self.hang_up()
        self.ended.set()

    def _shut_down(self, reason: str, *, guest: bool) -> None:
        self.emit("SHUTDOWN", {"guest": guest, "reason": reason})
        if guest and self.pauses_on_shutdown:
            self.status = "shutdown"
            self.emit("STOP")
        else:
            self._end(0)

    # --- commands

    def _do_qmp_capabilities(self, _: dict[str, Any]) -> object:
        return {}

    def _do_query_status(self, _: dict[str, Any]) -> object:
        return {"status": self.status, "running": self.status == "running"}

    def _do_cont(self, _: dict[str, Any]) -> object:
        if self.status not in _RUNNABLE:
            raise Refuse("Resetting the Virtual Machine is required")
        if self.status != "running":
            self.status = "running"
            self.emit("RESUME")
        return {}

    def _do_stop(self, _: dict[str, Any]) -> object:
        if self.status == "running":
            self.status = "paused"
            self.emit("STOP")
        return {}

    def _do_quit(self, _: dict[str, Any]) -> object:
        self.after_reply(lambda: self._shut_down("host-qmp-quit", guest=False))
        return {}

    def _do_system_powerdown(self, _: dict[str, Any]) -> object:
        self.emit("POWERDOWN")
        if self.obeys_powerdown and self.status == "running":
            self.after_reply(self.guest_shutdown)
        return {}

    def _do_system_reset(self, _: dict[str, Any]) -> object:
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        if self.status in ("shutdown", "guest-panicked"):
            self.status = "paused"
        return {}

    def _do_query_version(self, _: dict[str, Any]) -> object:
        return {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}

    def _do_query_commands(self, _: dict[str, Any]) -> object:
        own = [name[4:].replace("_", "-") for name in dir(self) if name.startswith("_do_")]
        return [{"name": name} for name in sorted({*own, *_EMPTY_LISTS, *_ACCEPTED})]

    def _do_query_uuid(self, _: dict[str, Any]) -> object:
        return {"UUID": self.uuid}

    def _do_query_name(self, _: dict[str, Any]) -> object:
        return {"name": "fake"}

    def _do_query_kvm(self, _: dict[str, Any]) -> object:
        return {"enabled": False, "present": False}

    def _do_query_balloon(self, _: dict[str, Any]) -> object:
        return {"actual": 128 * 1024 * 1024}

    def _do_human_monitor_command(self, _: dict[str, Any]) -> object:
        return ""

    def _do_getfd(self, arguments: dict[str, Any], fds: list[int]) -> object:
        old = self.named_fds.pop(arguments["fdname"], None)
        if old is not None:
            os.close(old)
        self.named_fds[arguments["fdname"]] = _take(fds)
        return {}

    def _do_closefd(self, arguments: dict[str, Any]) -> object:
        if arguments["fdname"] not in self.named_fds:
            raise Refuse(f"File descriptor named '{arguments['fdname']}' not found")
        os.close(self.named_fds.pop(arguments["fdname"]))
        return {}

    def _do_add_fd(self, arguments: dict[str, Any], fds: list[int]) -> object:
        fdset = arguments.get("fdset-id", len(self._fdsets))
        self._fdsets.append((fdset, _take(fds)))
        return {"fdset-id": fdset, "fd": self._fdsets[-1][1]}

    def _do_remove_fd(self, arguments: dict[str, Any]) -> object:
        gone = [item for item in self._fdsets if item[0] == arguments["fdset-id"]]
        if not gone:
            raise Refuse("File descriptor named 'fdset-id' not found")
        for item in gone:
            self._fdsets.remove(item)
            os.close(item[1])
        return {}

    # --- commands of a guest agent

    def _do_guest_sync(self, arguments: dict[str, Any]) -> object:
        return arguments["id"]

    _do_guest_sync_delimited = _do_guest_sync

    def _do_guest_ping(self, _: dict[str, Any]) -> object:
        return {}

    def _do_guest_info(self, _: dict[str, Any]) -> object:
        return {"version": "7.2.0", "supported_commands": []}


def _take(fds: list[int]) -> int:
    if not fds:
        raise Refuse("No file descriptor supplied via SCM_RIGHTS")
    return fds.pop(0)
