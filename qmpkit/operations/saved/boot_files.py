"""What a machine boots by beside its disks, which its RAM knows: kernel, initrd, firmware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import trio

from qmpkit.host.firmware import installed_firmware
from qmpkit.images.hashing import copied
from qmpkit.images.tool import Asked
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec

__all__ = ["copy_boot_files", "needed", "with_boot_files"]

_STORE = "empty-variables"


def needed(spec: MachineSpec) -> Iterator[Path]:
    """Those whose content the guest's RAM knows."""
    return (Path(path) for name, path in _named(spec) if name != _STORE)


def _named(spec: MachineSpec) -> Iterator[tuple[str, str]]:
    """Each file, and the name of its copy."""
    firmware, kernel = spec.firmware, spec.kernel
    found = {
        "firmware": firmware.code if isinstance(firmware, Uefi) else firmware,
        _STORE: firmware.template if isinstance(firmware, Uefi) else None,
        "kernel": kernel and kernel.image,
        "initrd": kernel and kernel.initrd,
    }
    return ((name, path) for name, path in found.items() if path)


async def copy_boot_files(spec: MachineSpec, folder: Path) -> dict[str, str]:
    """Copy them into *folder*; the name of each copy by the path of the file.

    UEFI that is installed on the host stays: it is known there by its place.  ImageFailed
    names the one that cannot be copied.
    """
    installed: set[str] = set()
    if isinstance(spec.firmware, Uefi):
        known = await trio.to_thread.run_sync(installed_firmware)
        installed = {file for firmware in known for file in firmware.files}
    names: dict[str, str] = {}
    for name, path in _named(spec):
        if path not in installed and path not in names:
            await copied(Path(path), folder / name, Asked("save a copy of", Path(path)))
            names[path] = name
    return names


def with_boot_files(spec: MachineSpec, paths: Mapping[str, str]) -> MachineSpec:
    """*spec* with those of its files that *paths* has elsewhere."""

    def at(path: str | None) -> str | None:
        return path if path is None else paths.get(path, path)

    firmware, kernel = spec.firmware, spec.kernel
    if kernel is not None:
        kernel = attrs.evolve(kernel, image=at(kernel.image), initrd=at(kernel.initrd))
    if isinstance(firmware, Uefi):
        template = at(firmware.template)
        firmware = attrs.evolve(firmware, code=at(firmware.code), template=template)
    else:
        firmware = at(firmware)
    return attrs.evolve(spec, firmware=firmware, kernel=kernel)
