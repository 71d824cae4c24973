"""virtiofsd: where it is, what it can do, and how it is started.

There are two: that of QEMU until 7.2, in C, and its successor in Rust, with other options.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import attrs

from qmpkit.errors import BinaryMissing, HostLacks
from qmpkit.host.rights import CAP_SYS_ADMIN, CAP_SYS_CHROOT, capable
from qmpkit.process.tools import run
from qmpkit.spec.peripherals import Share

__all__ = ["Virtiofsd", "find_virtiofsd", "virtiofsd_of"]

_TOLD = "usr/share/qemu/vhost-user"  # where its packages say which one QEMU is to use
_HELPERS = ("usr/libexec", "usr/lib/qemu", "usr/libexec/qemu-kvm")

_known: dict[tuple[str, int, int], Virtiofsd] = {}


@attrs.frozen
class Virtiofsd:
    """One that is installed.  `rust`: the successor; `readonly`: it can serve so."""

    binary: str
    rust: bool
    readonly: bool

    def argv(self, share: Share, fd: int, root: Path = Path("/")) -> list[str]:
        """The command that serves *share* on *fd*, a listening socket, shut in that directory.

        Raises HostLacks for what it cannot do, or may not.
        """
        if share.read_only and not self.readonly:
            cure = "install virtiofsd 1.11 or later, or share a read-only bind mount of it"
            raise HostLacks(f"{self.binary} cannot share {share.path!r} read-only", cure)
        sandbox = _sandbox(self, root)
        if self.rust:
            words = [f"--shared-dir={share.path}", f"--sandbox={sandbox}", "--log-level=warn"]
            return [self.binary, f"--fd={fd}", *words, *["--readonly"] * share.read_only]
        words = [f"source={_escaped(share.path)}", f"sandbox={sandbox}", "log_level=warn"]
        return [self.binary, f"--fd={fd}", "-f", *(it for word in words for it in ("-o", word))]


def _sandbox(tool: Virtiofsd, root: Path) -> str:
    """Namespaces of its own, or else the directory as its root."""
    if capable(root, CAP_SYS_ADMIN):
        return "namespace"
    if capable(root, CAP_SYS_CHROOT):
        return "chroot"
    if tool.rust:
        return "namespace"  # in a user namespace, where it is root
    cure = "install virtiofsd 1.0 or later, or name the socket of one that root has started"
    raise HostLacks(f"{tool.binary} serves a directory only as root", cure)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def find_virtiofsd(root: Path = Path("/")) -> str:
    """Its path; BinaryMissing when there is none.  Blocking."""
    for told in sorted((root / _TOLD).glob("*.json")):
        binary = _told_in(told)
        if binary is not None and os.access(root / binary.lstrip("/"), os.X_OK):
            return binary
    folders = [str(root / folder) for folder in _HELPERS]
    found = shutil.which("virtiofsd", path=os.pathsep.join([*os.get_exec_path(), *folders]))
    if found is None:
        cure = "sudo apt install virtiofsd (Debian 12: qemu-system-common)"
        raise BinaryMissing("virtiofsd is not installed", cure)
    return found


def _told_in(file: Path) -> str | None:
    try:
        told = json.loads(file.read_text())
        return str(told["binary"]) if told["type"] == "fs" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def virtiofsd_of(binary: str) -> Virtiofsd:
    """What the one at *binary* can do, as its `--help` tells; known the second time.

    Raises HostLacks when it does not run.
    """
    found = os.stat(binary)  # noqa: PTH116  # one quick system call
    key = (binary, found.st_mtime_ns, found.st_size)
    if key not in _known:
        done = await run([binary, "--help"], name="virtiofsd --help")
        text = done.out + done.err
        if "--fd" not in text:
            cure = "install it again (Debian's package: virtiofsd)"
            raise HostLacks(f"{binary} does not say what it can do: {done.status}", cure)
        _known[key] = Virtiofsd(binary, "--shared-dir" in text, "--readonly" in text)
    return _known[key]
