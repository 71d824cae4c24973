"""The UEFI firmware of this host, as its packages describe it to whoever starts QEMU.

The files are those of QEMU's docs/interop/firmware.json: small JSON texts in three
directories, from the general to the specific.  A file hides its namesake in a more
general directory, an empty one hides it and offers nothing, and of those that fit the
first by name is taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import HostLacks

__all__ = ["FirmwareFiles", "choose_firmware", "find_firmware", "installed_firmware", "no_firmware"]

_PACKAGES = {
    "x86_64": "ovmf",
    "aarch64": "qemu-efi-aarch64",
    "riscv64": "qemu-efi-riscv64",
}
# With these a firmware either does not start on a machine set up for plain UEFI, or
# refuses what is not signed.
_ONLY_SECURE = {"requires-smm", "enrolled-keys"}
_SECURE = {"secure-boot", "enrolled-keys"}


@attrs.frozen(kw_only=True)
class FirmwareFiles:
    """One firmware: what goes into pflash 0, and the empty store of variables for pflash 1.

    `descriptor`: the file that told of it.  `targets`: pairs of an architecture and a
    pattern of machine types.  `features`: as the format's documentation names them.
    """

    code: str
    template: str
    code_format: str = "raw"
    template_format: str = "raw"
    descriptor: str = ""
    targets: tuple[tuple[str, str], ...] = ()
    features: frozenset[str] = frozenset()

    @property
    def files(self) -> tuple[str, str]:
        """Both paths."""
        return self.code, self.template

    def is_for(self, arch: str, machine: str | None) -> bool:
        """Whether it runs there; *machine* is a versioned name, None is any."""
        return any(
            theirs == arch and (machine is None or fnmatchcase(machine, pattern))
            for theirs, pattern in self.targets
        )

    @property
    def secure_boot(self) -> bool:
        """Whether it refuses, as it is shipped, what is not signed."""
        return self.features >= _SECURE

    @property
    def plain(self) -> bool:
        """Whether it starts anything."""
        return not self.features & _ONLY_SECURE


def find_firmware(
    arch: str, machine: str | None = None, *, secure_boot: bool = False, root: Path = Path("/")
) -> FirmwareFiles:
    """The host's UEFI for that architecture, and machine type when one is given; blocking.

    *root* holds the `usr` and `etc` that are looked at.  `HostLacks` with the package to
    install when there is none.  Some 0.3 ms.
    """
    found = choose_firmware(installed_firmware(root), arch, machine, secure_boot=secure_boot)
    if found is None:
        raise no_firmware(arch, secure_boot=secure_boot)
    return found


def choose_firmware(
    files: Iterable[FirmwareFiles], arch: str, machine: str | None, *, secure_boot: bool
) -> FirmwareFiles | None:
    """The first of *files* that fits; pure."""
    for found in files:
        fits = found.secure_boot if secure_boot else found.plain
        if fits and found.is_for(arch, machine):
            return found
    return None


def no_firmware(arch: str, *, secure_boot: bool = False) -> HostLacks:
    """The error, to be raised."""
    kind = "UEFI firmware with Secure Boot" if secure_boot else "UEFI firmware"
    package = _PACKAGES.get(arch)
    cure = f"sudo apt install {package}" if package else "name its files in `firmware`"
    if arch == "riscv64":
        cure += " (from Debian 13)"
    return HostLacks(f"this host has no {kind} for {arch}", cure)


def installed_firmware(root: Path = Path("/")) -> tuple[FirmwareFiles, ...]:
    """All firmware for flash whose files are there, in the order of preference; blocking."""
    return tuple(_complete(_descriptors(root), root))


def _descriptors(root: Path) -> list[Path]:
    by_name: dict[str, Path] = {}
    for folder in _folders(root):
        try:
            by_name |= {path.name: path for path in folder.iterdir() if path.suffix == ".json"}
        except OSError:
            continue  # there is none, or it is not ours to look into
    return [by_name[name] for name in sorted(by_name)]


def _folders(root: Path) -> list[Path]:
    folders = ["/usr/share", "/etc"]
    config = os.environ.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):  # a relative one does not count, says its specification
        config = os.path.expanduser("~/.config")  # noqa: PTH111  which fails without a home
    if config.startswith("/"):
        folders.append(config)
    return [_below(root, f"{folder}/qemu/firmware") for folder in folders]


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _complete(descriptors: Iterable[Path], root: Path) -> Iterator[FirmwareFiles]:
    for path in descriptors:
        try:
            found = _parse(json.loads(path.read_bytes() or b"null"), path)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # not ours to judge: what is missing in the end is told
        # Debian 12 describes a file for aarch64 that it does not ship.  Not Path.is_file,
        # which raises when a directory on the way is closed to us.
        if found and all(os.path.isfile(_below(root, name)) for name in found.files):  # noqa: PTH113
            yield found


def _parse(told: Any, path: Path) -> FirmwareFiles | None:
    """What a descriptor says of a pair of images for flash; None when it is of another kind."""
    if told is None or "uefi" not in _texts(told["interface-types"]):
        return None
    mapping = told["mapping"]
    if mapping["device"] != "flash" or mapping.get("mode", "split") != "split":
        return None
    code, template = mapping["executable"], mapping["nvram-template"]
    return FirmwareFiles(
        code=_absolute(code["filename"]),
        template=_absolute(template["filename"]),
        code_format=_text(code["format"]),
        template_format=_text(template["format"]),
        descriptor=str(path),
        targets=tuple(
            (_text(target["architecture"]), pattern)
            for target in told["targets"]
            for pattern in _texts(target["machines"])
        ),
        features=frozenset(_texts(told.get("features", []))),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: object) -> list[str]:
    # A text in place of a list would pass for the list of its letters.
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return [_text(item) for item in value]


def _absolute(value: object) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise ValueError(f"{path!r} depends on where one stands")
    return path
