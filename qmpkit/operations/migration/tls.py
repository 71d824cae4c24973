"""Who is who at the two ends of a migration by TCP: certificates, or a secret that both know."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.parameters import TLS_ID
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused

__all__ = ["DISKS_TLS_ID", "control_faults", "identified", "tls_context", "tls_faults"]

DISKS_TLS_ID = "qk-migrate-tls"
"""The same for disks that go along, which do so before the memory."""

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


def control_faults(folder: Path) -> tuple[Fault, ...]:
    """What a folder lacks for the conversation of two supervisors.  Blocking."""
    if (folder / _SECRET).is_file():
        message = f"{folder / _SECRET} is of no use here: Python's ssl knows no shared secrets"
        return (Fault("tls", message, "a folder of certificates"),)
    return tls_faults(folder)


def tls_context(folder: Path, endpoint: Literal["client", "server"]) -> ssl.SSLContext:
    """How one end of that conversation shows who it is, and checks the other.  Blocking.

    Raises SpecInvalid for files that are no certificates.
    """
    kind = ssl.PROTOCOL_TLS_CLIENT if endpoint == "client" else ssl.PROTOCOL_TLS_SERVER
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED  # both are checked
    try:
        context.load_verify_locations(folder / "ca-cert.pem")
        context.load_cert_chain(folder / f"{endpoint}-cert.pem", folder / f"{endpoint}-key.pem")
    except (OSError, ssl.SSLError) as error:
        what = f"the certificates in {folder} cannot be used: {error.strerror or error}"
        fault = Fault("tls", what, "see whether key and certificate belong together")
        raise SpecInvalid([fault], "where to migrate") from error
    return context


@asynccontextmanager
async def identified(
    machine: Machine, folder: Path, endpoint: Literal["client", "server"], *, id: str = TLS_ID
) -> AsyncIterator[None]:
    """The object *id* of one end, by which it shows who it is, and checks the other."""
    secret = await trio.to_thread.run_sync((folder / _SECRET).is_file)
    kind = {"qom-type": "tls-creds-psk"} if secret else {"qom-type": "tls-creds-x509"}
    about = {**kind, "id": id, "dir": str(folder), "endpoint": endpoint, "verify-peer": True}
    try:
        await _added(machine, about)
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *LOST):
            await machine.execute("object-del", {"id": id})


async def _added(machine: Machine, about: Mapping[str, Any]) -> None:
    try:
        await machine.execute("object-add", about)
    except CommandRefused as refused:
        try:  # there is one, of a move whose supervisor was killed
            await machine.execute("object-del", {"id": about["id"]})
        except CommandRefused:
            raise refused from None
        await machine.execute("object-add", about)
