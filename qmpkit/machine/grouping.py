"""The control group of a machine that is limited: there before its process, gone after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import trio

from qmpkit.errors import HostLacks
from qmpkit.process.cgroup import Group, device_number, made_group
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.resources import IoMax, Resources, cgroup_files, controllers

__all__ = ["grouped", "io_lines", "limit"]

_REMOVE_GRACE = 5.0
"""Seconds that removing a group may take, which is a system call."""

_RATES = ("rbps", "wbps", "riops", "wiops")


@asynccontextmanager
async def grouped(spec: MachineSpec) -> AsyncIterator[Group | None]:
    """A control group with the limits of `spec.resources`; None when it has none.

    At the end of the block it is removed, unless a process is in it that lives on.
    Raises HostLacks.
    """
    resources = spec.resources
    wanted = controllers(resources)
    if not wanted:
        yield None
        return
    files = cgroup_files(resources)
    with ExitStack() as stack:

        def make() -> Group:
            group = stack.enter_context(made_group(_plain(spec.name), wanted, files))
            limit_io(group, resources.io_max)
            return group

        try:
            try:
                group = await trio.to_thread.run_sync(make)
            except HostLacks as error:
                error.source = f"machine {spec.name!r}"
                raise
            yield group
        finally:
            with trio.move_on_after(_REMOVE_GRACE, shield=True):
                await trio.to_thread.run_sync(stack.close)


def _plain(name: str) -> str:
    """A machine's name as that of a directory that people type."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in name)


def io_lines(limits: tuple[IoMax, ...]) -> list[str]:
    """What `io.max` takes, a line for each device.  Blocking; raises HostLacks."""
    lines = []
    for limit in limits:
        given = [(name, getattr(limit, name)) for name in _RATES]
        words = [f"{name}={'max' if rate is None else rate}" for name, rate in given]
        lines.append(" ".join([device_number(limit.device), *words]))
    return lines


def limit_io(group: Group, limits: tuple[IoMax, ...]) -> None:
    """Set `io.max`, which takes one device at a time, and forget devices no longer named."""
    lines = io_lines(limits)
    named = {line.split()[0] for line in lines}
    for old in group.read("io.max").splitlines():
        if old.split()[0] not in named:
            group.write({"io.max": f"{old.split()[0]} rbps=max wbps=max riops=max wiops=max"})
    for line in lines:
        group.write({"io.max": line})


def limit(group: Group, resources: Resources, had: tuple[str, ...]) -> None:
    """Change the limits of a group that is in use.  Blocking; raises HostLacks.

    *had*: the controllers that it was limited by before: what is no longer limited is freed.
    """
    wanted = controllers(resources)
    group.enable(wanted)
    files = cgroup_files(resources)
    for controller in set(had) - set(wanted):
        files |= _FREE.get(controller, {})
    group.write(files)
    if "io" in (*wanted, *had):
        limit_io(group, resources.io_max)


_FREE = {
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100"},
    "memory": {"memory.high": "max", "memory.max": "max"},
    "pids": {"pids.max": "max"},
}
