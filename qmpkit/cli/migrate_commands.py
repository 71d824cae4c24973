"""`qmpkit migrate` as the shell sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from qmpkit.cli.exits import Refusal
from qmpkit.cli.farm_words import Farm, Json, Name, farm_names

__all__ = ["ALL"]

Seconds = Annotated[float | None, Parameter(validator=validators.Number(gt=0))]


def migrate(
    name: Name,
    /,
    *,
    to: Annotated[
        str | None,
        Parameter(
            help="Another farm of this host, or tls://HOST:PORT, where `receive` waits.",
            completer=farm_names,
        ),
    ] = None,
    qemu: Annotated[
        str | None, Parameter(help="Another QEMU: its path, or a name on PATH. Default: its own.")
    ] = None,
    disks: Annotated[
        str | None,
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
        Literal["fd", "unix", "tcp", "file"] | None,
        Parameter(help="What its memory goes through; file wants --file. Default: fd (no --to)."),
    ] = None,
    file: Annotated[
        Path | None, Parameter(help="A new file for the memory, which is removed afterwards.")
    ] = None,
    tls: Annotated[
        Path | None,
        Parameter(help="A folder of certificates for another host (or --way tcp, or keys.psk)."),
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
    settle: Annotated[
        bool, Parameter(help="Ask what came of its last move, whose answer was lost.")
    ] = False,
    here: Annotated[
        bool, Parameter(help="With --settle: nobody is asked, your word is that it is here.")
    ] = False,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Move a machine's guest to a new QEMU while it runs: a newer one, or another host's.

    It arrives whole, with its disks and ports, or stays as it was. With --disks the images move
    too while it writes, each into a new file; the old files stay, for you to delete. With
    --check nothing is done, and the exit status is 2 when something is in the way.

    With --to another farm keeps it from then on, and finds its disks where they are here, or
    with --disks in a directory of that host:

      qmpkit migrate web --to staging
      qmpkit migrate web --to tls://host2:4455 --tls /etc/qmpkit/tls --disks /srv/disks
    """
    from qmpkit.cli.migrate_actions import check_migration, migrate_machine, settle_migration

    if settle and check:
        raise Refusal("--settle acts on what it hears, and --check does nothing. Cure: one of them")
    if here and not settle:
        raise Refusal("--here is your word for --settle, and moves nothing. Cure: give both")
    if collapse and disks is None:
        raise Refusal("--collapse is of disks that move too. Cure: --disks DIRECTORY")
    if disks == "":  # of a variable that is not set: it would be the directory one stands in
        raise Refusal("--disks is empty. Cure: a directory")
    if qemu is not None and os.sep in qemu:
        qemu = str(Path(qemu).absolute())
    there = {"to": to, "tls": None if tls is None else str(tls.absolute())}
    if settle:
        asked = {**there, "here": here or None}
        return settle_migration(name, _given(asked), farm, as_json=json)
    where: dict[str, Any] = {
        "qemu": qemu,
        "disks": None if disks is None else str(Path(disks).absolute()),
        "collapse": collapse or None,
    }
    body: dict[str, Any] = {
        **there,
        **where,
        "policy": policy,
        "deadline": deadline,
        "passes": passes,
        "way": way,
        "file": None if file is None else str(file.absolute()),
        "max_bandwidth": bandwidth,
        "downtime": downtime,
        "max_downtime": max_downtime,
        "channels": channels,
        "compression": compression,
    }
    act = check_migration if check else migrate_machine
    return act(name, _given(body), farm, as_json=json)


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


async def receive(
    *,
    listen: Annotated[
        str, Parameter(help="ADDRESS:PORT of this host; the memory comes by another port of it.")
    ],
    tls: Annotated[Path, Parameter(help="A folder of certificates: QEMU's names, both sides.")],
    allow: Annotated[
        tuple[Path, ...],
        Parameter(help="A folder that its files may be in; repeat it. Default: this one."),
    ] = (),
    memory_port: Annotated[int, Parameter(help="The memory's port. Default: any.")] = 0,
    once: Annotated[bool, Parameter(help="End when one machine has come.")] = False,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Wait for machines that other hosts send, until Ctrl-C; the farm keeps them.

    Only who has a certificate of the same authority is heard. Starts the farm's daemon when
    none runs.

      qmpkit receive --listen 10.0.0.2:4455 --tls /etc/qmpkit/tls --allow /srv/disks
    """
    from qmpkit.cli.receive import receive_machines

    folders = [path.absolute() for path in allow] or [Path.cwd()]
    return await receive_machines(
        listen, tls.absolute(), folders, memory_port, farm, once=once, as_json=json
    )


ALL: tuple[Callable[..., Any], ...] = (migrate, receive)
