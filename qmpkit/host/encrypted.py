"""Encrypted images on this host: which there are below a disk, and whether the secrets are.

Whether a secret is the right one is found out by QEMU alone.  Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import Fault
from qmpkit.host.chain import Chain, Layer, walk_chain
from qmpkit.host.findings import Problem
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.encryption import LONGEST_SECRET, BaseImage, Luks, secret_problem
from qmpkit.spec.machine import MachineSpec

__all__ = ["bases_of", "encrypted_problems", "secret_problems", "secret_warnings", "with_secrets"]


def bases_of(disk: Disk) -> tuple[BaseImage, ...]:
    """The images below that of an encrypted disk, or below the one that is to be made for it."""
    if disk.luks is None:
        return ()
    if isinstance(disk.make, Overlay) and not os.path.lexists(disk.file):
        return with_secrets(disk.luks, walk_chain(Path(disk.make.file), disk.make.format).layers)
    return with_secrets(disk.luks, walk_chain(Path(disk.file), disk.format).layers[1:])


def with_secrets(luks: Luks, layers: tuple[Layer, ...]) -> tuple[BaseImage, ...]:
    """The images, with the number of the secret that opens each of them."""
    return tuple(
        BaseImage(
            str(layer.path),
            layer.format,
            "host_device" if _is_device(layer.path) else "file",
            _secret(luks, layer.path) if layer.encrypted else None,
        )
        for layer in layers
    )


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def _secret(luks: Luks, path: Path) -> int:
    for number, base in enumerate(luks.bases, 1):
        with suppress(OSError):
            if path.samefile(base.file):
                return number
    return 0


def encrypted_problems(disk: Disk, chain: Chain, where: str, *, own: bool) -> Iterator[Problem]:
    """That the images of a disk are encrypted and it is not said, or the other way round.

    *own*: the first of them is the disk's, not the base of one that is to be made.
    """
    encrypted = [layer.path for layer in chain.layers if layer.encrypted]
    if disk.luks is None and encrypted:
        message = f"{str(encrypted[0])!r} is encrypted"
        hint = 'luks = "web.key", the file with its secret'
        yield Problem(Fault(f"{where}.luks", message, hint))
    elif disk.luks is not None and own and chain.layers and not chain.layers[0].encrypted:
        message = f"{disk.file!r} is not encrypted, what the guest writes would be there in clear"
        hint = "leave luks out, or encrypt a copy: qmpkit image convert --secret-file FILE"
        yield Problem(Fault(f"{where}.luks", message, hint))


def secret_problems(spec: MachineSpec) -> Iterator[Problem]:
    """A fault for each file of a secret that is not there, or that QEMU would not take."""
    for where, file in _secret_files(spec):
        try:
            with Path(file).open("rb") as source:
                problem = secret_problem(source.read(LONGEST_SECRET + 1))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield Problem(Fault(where, f"{file!r} cannot be read: {reason.lower()}"))
            continue
        if problem:
            yield Problem(Fault(where, f"the secret in {file!r} {problem}"))


def secret_warnings(spec: MachineSpec) -> Iterator[str]:
    """A sentence for each file of a secret that others than its owner may read."""
    for where, file in _secret_files(spec):
        with suppress(OSError, ValueError):
            if Path(file).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                yield f"{where}: others than its owner may read {file!r}: chmod 600"


def _secret_files(spec: MachineSpec) -> Iterator[tuple[str, str]]:
    for number, disk in enumerate(spec.disks):
        if disk.luks is None:
            continue
        where = f"disks[{number}].luks"
        yield f"{where}.key_file", disk.luks.key_file
        for place, base in enumerate(disk.luks.bases):
            yield f"{where}.bases[{place}].key_file", base.key_file
