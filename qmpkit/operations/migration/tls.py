"""Who is who at the two ends of a migration by TCP: certificates, or a secret that both know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import trio

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.parameters import TLS_ID
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused

__all__ = ["identified", "tls_faults"]

_SECRET = "keys.psk"
_SIDES = ("server", "client")
# As QEMU calls them.
_FILES = ("ca-cert.pem", *(f"{side}-{kind}.pem" for side in _SIDES for kind in ("cert", "key")))


def tls_faults(folder: Path | None) -> tuple[Fault, ...]:
    """The files that are missing.  Blocking."""
    return () if folder is None else tuple(_missing(folder))


def _missing(folder: Path) -> Iterator[Fault]:
    if (folder / _SECRET).is_file():
        return
    for name in _FILES:
        if not (folder / name).is_file():
            yield Fault("tls", f"{folder / name} is not there", f"or {_SECRET}, a shared secret")


@asynccontextmanager
async def identified(
    machine: Machine, folder: Path, endpoint: Literal["client", "server"]
) -> AsyncIterator[None]:
    """The object `TLS_ID` of one end, by which it shows who it is, and checks the other."""
    secret = await trio.to_thread.run_sync((folder / _SECRET).is_file)
    kind = {"qom-type": "tls-creds-psk"} if secret else {"qom-type": "tls-creds-x509"}
    about = {**kind, "id": TLS_ID, "dir": str(folder), "endpoint": endpoint, "verify-peer": True}
    try:
        await machine.execute("object-add", about)
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *LOST):
            await machine.execute("object-del", {"id": TLS_ID})
