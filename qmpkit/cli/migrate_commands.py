"""`qmpkit migrate` as the shell sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Json, Name

__all__ = ["ALL"]

Seconds = Annotated[float | None, Parameter(validator=validators.Number(gt=0))]


def migrate(
    name: Name,
    /,
    *,
    qemu: Annotated[
        str | None, Parameter(help="Another QEMU: its path, or a name on PATH. Default: its own.")
    ] = None,
    disks: Annotated[
        Path | None,
        Parameter(help="A directory for new images that its disks move into. Default: they stay."),
    ] = None,
    collapse: Annotated[
        bool, Parameter(help="With --disks: copy what is in their bases too.")
    ] = False,
    policy: Annotated[
        Literal["live", "fast", "postcopy"],
        Parameter(
            help="Of a guest that writes too fast: slow it down, stop it, or run it there first."
        ),
    ] = "live",
    deadline: Annotated[
        Seconds, Parameter(help="With fast: seconds until it is stopped. Default: 5.")
    ] = None,
    passes: Annotated[
        int | None,
        Parameter(
            validator=validators.Number(gte=0),
            help="With postcopy: passes over its memory until it runs there. Default: 1.",
        ),
    ] = None,
    way: Annotated[
        Literal["fd", "unix", "tcp", "file"],
        Parameter(help="What its memory goes through; file needs --file."),
    ] = "fd",
    file: Annotated[
        Path | None, Parameter(help="A new file for the memory, which is removed afterwards.")
    ] = None,
    tls: Annotated[
        Path | None, Parameter(help="A folder of certificates, or of keys.psk, for --way tcp.")
    ] = None,
    bandwidth: Annotated[
        str | None, Parameter(help="What it may send a second at most: 100MiB.")
    ] = None,
    downtime: Annotated[
        Seconds, Parameter(help="Seconds that the guest may stand still. Default: 0.3.")
    ] = None,
    max_downtime: Annotated[
        Seconds, Parameter(help="What that may be raised to. Default: 2.")
    ] = None,
    channels: Annotated[int, Parameter(help="Connections at once, with --way unix or tcp.")] = 0,
    compression: Annotated[
        Literal["none", "zlib", "zstd"], Parameter(help="Of what goes through channels.")
    ] = "none",
    check: Annotated[bool, Parameter(help="Only say what is in the way.")] = False,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Move a machine's guest to a new QEMU while it runs, to a newer one for instance.

    It arrives whole, with its disks and ports, or stays as it was. With --disks the images move
    too while it writes, each into a new file; the old files stay, for you to delete. With
    --check nothing is done, and the exit status is 2 when something is in the way.
    """
    from qmpkit.cli.migrate_actions import check_migration, migrate_machine

    if qemu is not None and os.sep in qemu:
        qemu = str(Path(qemu).absolute())
    where: dict[str, Any] = {
        "qemu": qemu,
        "disks": None if disks is None else str(disks.absolute()),
        "collapse": collapse or None,
    }
    if check:
        return check_migration(name, _given(where), farm, as_json=json)
    body: dict[str, Any] = {
        **where,
        "policy": policy,
        "deadline": deadline,
        "passes": passes,
        "way": way,
        "file": None if file is None else str(file.absolute()),
        "tls": None if tls is None else str(tls.absolute()),
        "max_bandwidth": bandwidth,
        "downtime": downtime,
        "max_downtime": max_downtime,
        "channels": channels,
        "compression": compression,
    }
    return migrate_machine(name, _given(body), farm, as_json=json)


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


ALL = (migrate,)
