"""QEMU's binaries: finding them, and asking each once what it can do."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trio
from trio.lowlevel import RunVar

from qmpkit.errors import BinaryMissing, LaunchFailed
from qmpkit.host.capabilities import (
    Capabilities,
    MachineType,
    Stamp,
    load,
    load_schema,
    store,
    store_schema,
)
from qmpkit.process.child import child
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.schema import Schema, fetch_schema
from qmpkit.qmp.session import Session

__all__ = ["capabilities_of", "find_binary", "known_capabilities", "package_of", "schema_of"]

# In the Debian package named after the first of its architectures.
_PACKAGES = {
    "x86_64": "qemu-system-x86",
    "i386": "qemu-system-x86",
    "aarch64": "qemu-system-arm",
    "arm": "qemu-system-arm",
    "ppc64": "qemu-system-ppc",
    "ppc": "qemu-system-ppc",
}
_OTHER_PACKAGE = "qemu-system-misc"
# Its exit status follows the end of its monitor at once; the bound is for a wedged binary.
_STATUS_FOLLOWS = 5.0
_QMP_FD = 3
_ACCELERATORS = ("kvm", "tcg")
# The first that is there.  A QEMU without TCG would by itself take KVM, which is not everybody's
# to open; what it answers is the same by qtest, which runs no guest.
_TO_ASK = ("tcg", "qtest", "kvm")

_remembered: dict[Stamp, Capabilities] = {}
_asking: RunVar[dict[Stamp, trio.Lock]] = RunVar("qmpkit_binary_locks")


def package_of(arch: str) -> str:
    """The Debian package with the QEMU for *arch*."""
    return _PACKAGES.get(arch, _OTHER_PACKAGE)


def find_binary(named: str | None, arch: str) -> Path:
    """The QEMU binary as an absolute path: *named*, or `qemu-system-ARCH` on PATH.

    *named* is a path when it holds a slash, else looked up on PATH too.
    Blocking; raises `BinaryMissing` with the package to install.
    """
    name = named or f"qemu-system-{arch}"
    found = shutil.which(name)
    if found is not None:
        return Path(found).absolute()
    install = f"sudo apt install {package_of(arch)}"
    if "/" not in name:
        raise BinaryMissing(f"{name} is not on PATH", install)
    if Path(name).exists():
        raise BinaryMissing(f"{name!r} is not an executable file", f"chmod +x it, or {install}")
    raise BinaryMissing(f"{name!r} does not exist", f"correct `qemu`, or {install}")


def known_capabilities(stamp: Stamp) -> Capabilities | None:
    """What is remembered of this file, in memory or on disk.  Blocking: 0.2 ms, then nothing."""
    if stamp not in _remembered and (stored := load(stamp)) is not None:
        _remembered[stamp] = stored
    return _remembered.get(stamp)


async def capabilities_of(stamp: Stamp) -> Capabilities:
    """What the binary can do, asked of it over QMP (80 ms) unless it is remembered.

    Uses query-machines, query-commands, query-cpu-definitions, query-target,
    query-command-line-options, qom-list-properties and query-qmp-schema.
    `LaunchFailed` when the file is no QEMU.  Cancelled, the process it asked is gone.
    """
    async with _lock(stamp):  # fifty first starts at once ask once
        known = await trio.to_thread.run_sync(known_capabilities, stamp)
        if known is None:
            known, _ = await _ask_and_store(stamp)
        return known


async def schema_of(stamp: Stamp) -> Schema:
    """The binary's QMP schema: what its commands and events take and give.

    Read from the disk (4 ms) where `capabilities_of` left it, else asked as there.
    """
    async with _lock(stamp):
        stored = await trio.to_thread.run_sync(load_schema, stamp)
        return stored or (await _ask_and_store(stamp))[1]


async def _ask_and_store(stamp: Stamp) -> tuple[Capabilities, Schema]:
    known, schema = await _ask(stamp.path)
    _remembered[stamp] = known

    def keep() -> None:
        # This one first: a start finds the other and asks no more.
        store_schema(stamp, schema)
        store(stamp, known)

    await trio.to_thread.run_sync(keep)
    return known, schema


def _lock(stamp: Stamp) -> trio.Lock:
    try:
        locks = _asking.get()
    except LookupError:
        locks = {}
        _asking.set(locks)
    return locks.setdefault(stamp, trio.Lock())


async def _ask(path: str) -> tuple[Capabilities, Schema]:
    chardev = f"socket,id=qmp,fd={_QMP_FD}"
    argv = [path, "-M", "none", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
    for accelerator in _TO_ASK:
        argv += ["-accel", accelerator]
    argv += ["-chardev", chardev, "-mon", "chardev=qmp,mode=control"]
    name = f"probe of {path}"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        async with child(argv, fds={_QMP_FD: theirs.fileno()}, name=name) as process:
            theirs.close()  # else QEMU's end would never be seen as an end
            try:
                async with open_session(ours, name=name) as qmp:
                    schema = await fetch_schema(qmp)
                    return await _interview(qmp, schema), schema
            except (MonitorLost, MonitorGarbled, MonitorSilent) as error:
                with trio.move_on_after(_STATUS_FOLLOWS):
                    await process.wait()
                status = str(process.status) if process.status else None
                cure = f"{path!r} is no QEMU: name a qemu-system-… binary in `qemu`"
                raise LaunchFailed(name, argv, status, process.stderr_tail, cure) from error


async def _interview(qmp: Session, schema: Schema) -> Capabilities:
    version = await qmp.execute("query-version")
    number = version["qemu"]
    commands = frozenset(_names(await qmp.execute("query-commands")))
    # Some targets (riscv in 7.2) cannot list their CPU models.
    listable = "query-cpu-definitions" in commands
    models = await qmp.execute("query-cpu-definitions") if listable else []
    options = await qmp.execute("query-command-line-options")
    return Capabilities(
        version=(number["major"], number["minor"], number["micro"]),
        package=version["package"],
        arch=(await qmp.execute("query-target"))["arch"],
        accelerators=tuple([name for name in _ACCELERATORS if await _has_accelerator(qmp, name)]),
        machines=tuple(machine_type(line) for line in await qmp.execute("query-machines")),
        cpu_models=tuple(sorted(_names(models))),
        commands=commands,
        run_with_user=has_option(options, "run-with", "user"),
        sandbox=has_option(options, "sandbox", "enable"),
        aio=tuple(sorted(schema.values("blockdev-add", "aio"))),
        vq_mapping=await _has_property(qmp, "virtio-blk-device", "iothread-vq-mapping"),
    )


def _names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    return [line["name"] for line in lines]


async def _has_accelerator(qmp: Session, name: str) -> bool:
    # By its own name, which loads one module.  qom-list-types would load every module there is
    # (30 ms), and QEMU 10.0 aborts on those of another build.
    try:
        await qmp.execute("qom-list-properties", {"typename": f"{name}-accel"})
    except CommandRefused as refused:
        if refused.error_class == "DeviceNotFound":
            return False
        raise
    return True


async def _has_property(qmp: Session, driver: str, name: str) -> bool:
    try:
        found = await qmp.execute("device-list-properties", {"typename": driver})
    except CommandRefused:  # a target without virtio
        return False
    return name in _names(found)


def has_option(options: Iterable[Mapping[str, Any]], option: str, parameter: str) -> bool:
    """Whether `-option parameter=…` exists, by `query-command-line-options`."""
    return any(
        found["option"] == option and parameter in _names(found["parameters"]) for found in options
    )


def machine_type(line: Mapping[str, Any]) -> MachineType:
    """One line of `query-machines`."""
    return MachineType(
        name=line["name"],
        alias=line.get("alias", ""),
        default=line.get("is-default", False),
        max_cpus=line["cpu-max"],
        default_cpu=line.get("default-cpu-type", ""),
        ram_id=line.get("default-ram-id", ""),
        deprecated=line["deprecated"],
    )
