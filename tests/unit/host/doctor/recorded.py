"""Recorded hosts: what their files held, and what their devices and programs answered."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import LaunchFailed
from qmpkit.host.capabilities import Capabilities, Stamp
from qmpkit.host.doctor import Host
from qmpkit.host.kvm import User

HOSTS = Path(__file__).with_name("hosts")
NAMES = sorted(path.stem for path in HOSTS.glob("*.toml"))


def recorded(name: str, root: Path) -> Host:
    """The host of `hosts/NAME.toml`, laid out below *root*."""
    table = tomllib.loads((HOSTS / f"{name}.toml").read_text())
    return Answers(root, table).host()


@attrs.frozen
class Answers:
    """Stands for the host's devices and programs."""

    root: Path
    table: dict[str, Any]

    def host(self) -> Host:
        self._lay_out()
        return Host(
            root=self.root,
            arch=self.table["arch"],
            user=User(**self.table["user"]),
            search=(self.root / "usr/bin",),
            try_kvm=self._try_kvm,
            owner_of=self._owner_of,
            may_use=lambda path: path.exists() and self._name(path) not in self.table["denied"],
            ask=self._ask,
            version_of=self._version_of,
        )

    def _lay_out(self) -> None:
        for path in self.table["empty"]:
            if path.endswith("/"):
                (self.root / path[1:]).mkdir(parents=True, exist_ok=True)
            else:
                self._write(path, "")
        for path in self.table["devices"]:
            self._write(path, "")
        for path, text in self.table["files"].items():
            self._write(path, text.removeprefix("\n"))
        commands = [f"/usr/bin/{name}" for name in self.table["qemu"]]
        for path in [*commands, *self.table["programs"]]:
            self._write(path, "").chmod(0o755)

    def _write(self, path: str, text: str) -> Path:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def _name(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"

    def _try_kvm(self, path: str, arch: str) -> None:
        answer = self.table["kvm"]
        if answer != "works":
            number = getattr(errno, answer)
            raise OSError(number, os.strerror(number), path)

    def _owner_of(self, path: Path) -> tuple[str, str]:
        mode, group = self.table["devices"].get(self._name(path), ("-rwxr-xr-x", "root"))
        return mode, group

    async def _ask(self, stamp: Stamp) -> Capabilities:
        name = Path(stamp.path).name
        said = self.table["qemu"][name]
        if "problem" in said:
            raise LaunchFailed(name, [stamp.path], "exit status 127", said["problem"])
        return Capabilities(
            version=tuple(said["version"]),
            package=said["package"],
            arch=said.get("arch", name.removeprefix("qemu-system-")),
            accelerators=tuple(said["accelerators"]),
            machines=(),
            cpu_models=(),
            commands=frozenset(),
            run_with_user=False,
            sandbox=said.get("sandbox", True),
        )

    async def _version_of(self, path: Path) -> str | None:
        said: str = self.table["programs"][self._name(path)]
        return None if said == "does not run" else said
