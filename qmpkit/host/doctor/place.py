"""The host that is examined: this one, or a recorded one for which every question is answered."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import attrs

from qmpkit.errors import QmpkitError
from qmpkit.host._kvm_device import try_kvm
from qmpkit.host.binary import capabilities_of
from qmpkit.host.capabilities import Capabilities, Stamp
from qmpkit.host.kvm import Opener, User, host_arch, owner_of, read_text
from qmpkit.process.limits import Limits
from qmpkit.process.tools import run

__all__ = ["Host", "ModuleState", "may_use"]

ModuleState = Literal["loaded", "available", "absent", "unknown"]

_VERSION_LIMITS = Limits(time=5.0, cpu=5.0)
_HELPERS = ("usr/lib/qemu", "usr/libexec", "usr/libexec/qemu-kvm", "usr/sbin", "sbin")


def may_use(path: Path) -> bool:
    """Whether we may read and write it.  It is not opened: that may load a kernel module."""
    return os.access(path, os.R_OK | os.W_OK, effective_ids=True)


async def first_line_of_version(path: Path) -> str | None:
    """What `--version` says first; None when the program does not run.  Bound: 5 s."""
    try:
        completed = await run([str(path), "--version"], limits=_VERSION_LIMITS)
    except (QmpkitError, OSError):
        return None
    if completed.timed_out or not completed.status.success:
        return None
    return next(iter(completed.out.splitlines()), "")


def _search_path() -> tuple[Path, ...]:
    return tuple(Path(entry) for entry in os.get_exec_path() if entry.startswith("/"))


@attrs.frozen(kw_only=True)
class Host:
    """Where the doctor looks and whom it asks; the defaults are this host.

    `root` holds `proc`, `sys`, `dev`, `etc`, `usr` and `lib`.  The rest are questions that
    files do not answer: `try_kvm` opens the KVM device and creates a VM, `ask` a QEMU
    what it can do, `version_of` a program its version.
    """

    root: Path = Path("/")
    arch: str = attrs.field(factory=host_arch)
    user: User = attrs.field(factory=User.current)
    search: tuple[Path, ...] = attrs.field(factory=_search_path)
    try_kvm: Opener = try_kvm
    owner_of: Callable[[Path], tuple[str, str]] = owner_of
    may_use: Callable[[Path], bool] = may_use
    ask: Callable[[Stamp], Awaitable[Capabilities]] = capabilities_of
    version_of: Callable[[Path], Awaitable[str | None]] = first_line_of_version

    def at(self, path: str) -> Path:
        """*path* ("/proc/…") below the root."""
        return self.root / path.removeprefix("/")

    def read(self, path: str, limit: int = 4096) -> str:
        """The start of a file without white space around it; "" when it cannot be read."""
        return read_text(self.at(path), limit).strip()

    def shown(self, path: Path) -> str:
        """A path below the root as this host knows it."""
        return f"/{path.relative_to(self.root)}"

    @property
    def sudo(self) -> str:
        """What goes before a command that only root may run."""
        return "" if self.user.uid == 0 else "sudo "

    def install(self, *packages: str, again: bool = False) -> str:
        """The cure for programs that are lacking or (*again*) broken, by Debian's package names."""
        names = " ".join(packages)
        if "debian" not in self.release("ID") + self.release("ID_LIKE"):
            what = "it" if len(packages) == 1 else "them"
            which = "package" if len(packages) == 1 else "packages"
            return f"install {what}{' again' if again else ''} (Debian's {which}: {names})"
        return f"{self.sudo}apt install {'--reinstall ' if again else ''}{names}"

    def release(self, key: str) -> str:
        """A value of os-release (`ID`, `VERSION_ID`, …); "" when it has none."""
        for line in self.read("/etc/os-release").splitlines():
            name, _, value = line.partition("=")
            if name == key:
                return value.strip("\"'")
        return ""

    def status(self) -> dict[str, str]:
        """What the kernel says about this process."""
        lines = (line.partition(":") for line in self.read("/proc/self/status", 8192).splitlines())
        return {key: value.strip() for key, _, value in lines}

    def described(self) -> dict[str, str]:
        """What this host is; "" for what cannot be found out."""
        return {
            "os": self.release("PRETTY_NAME"),
            "kernel": self.read("/proc/sys/kernel/osrelease"),
            "arch": self.arch,
            "container": self.container,
            "user": self.user.name,
        }

    @property
    def container(self) -> str:
        """The kind of container that we are in; "" when there is no sign of one."""
        if said := self.read("/run/systemd/container"):
            return said
        marks = {"/run/.containerenv": "podman", "/.dockerenv": "docker"}
        return next((name for mark, name in marks.items() if self.exists(mark)), "")

    def number(self, path: str) -> int | None:
        """The number that is all of a file."""
        text = self.read(path)
        return int(text) if text.isdigit() else None

    def exists(self, path: str) -> bool:
        """Whether it is there for us to see."""
        return os.path.exists(self.at(path))  # noqa: PTH110 - Path.exists raises EACCES

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; nothing when it cannot be read."""
        with suppress(OSError):
            return sorted(os.listdir(self.at(path)))  # noqa: PTH208 - names, not paths
        return []

    def program(self, name: str) -> Path | None:
        """A program on the search path, else where distributions keep what is no command."""
        folders = [*self.search, *(self.root / folder for folder in _HELPERS)]
        return next((folder / name for folder in folders if _executable(folder / name)), None)

    def programs(self, prefix: str) -> list[Path]:
        """The commands on the search path whose name begins so, the first of each name."""
        found: dict[str, Path] = {}
        for folder in self.search:
            with suppress(OSError):
                for entry in os.scandir(folder):
                    path = folder / entry.name
                    if entry.name.startswith(prefix) and _executable(path):
                        found.setdefault(entry.name, path)
        return [found[name] for name in sorted(found)]

    def module(self, name: str) -> ModuleState:
        """What this kernel has of a module: `unknown` where its list is not to be had."""
        if self.exists(f"/sys/module/{name}"):
            return "loaded"
        folder = f"/lib/modules/{self.read('/proc/sys/kernel/osrelease')}"
        file = f"/{name}.ko"
        for listing, state in (("modules.builtin", "loaded"), ("modules.dep", "available")):
            text = self.read(f"{folder}/{listing}", 8 << 20).replace("-", "_")
            if file in text:
                return state  # type: ignore[return-value]
            if not text:
                return "unknown"
        return "absent"


def _executable(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)  # noqa: PTH113 - as in `exists`
