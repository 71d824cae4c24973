"""Disks that are served to other hosts: where, and by which certificates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.network import inet_address

__all__ = ["TLS_ID", "Tcp", "tcp_of"]

TLS_ID = "qk-pull-tls"
"""The object of the server's certificate."""

_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")  # as QEMU calls them


@attrs.frozen
class Tcp:
    """A host's address and a port, and the folder with the certificates."""

    place: tuple[str, int]
    certificates: Path

    def told(self, port: int | None) -> str:
        """The address, with the port that it has in the end."""
        host = f"[{self.place[0]}]" if ":" in self.place[0] else self.place[0]
        return f"{host}:{port}"


def tcp_of(listen: str | None, tls: str | os.PathLike[str] | None, source: str) -> Tcp | None:
    """What is asked for; None for a private socket alone.  Blocking.

    SpecInvalid with all that is wrong, in the name of *source*.
    """
    if faults := [*_faults(listen, tls)]:
        raise SpecInvalid(faults, source)
    if listen is None or tls is None or (place := inet_address(listen)) is None:
        return None
    return Tcp(place, Path(tls).absolute())


def _faults(listen: str | None, tls: str | os.PathLike[str] | None) -> Iterator[Fault]:
    if listen is None and tls is None:
        return
    if listen is None:
        yield Fault("tls", "a private socket needs none", 'listen="192.0.2.1:10809" for others')
    elif inet_address(listen) is None:
        yield Fault("listen", f"{listen!r} is not an address", '"192.0.2.1:10809"')
    if tls is None:
        hint = f"the folder of {', '.join(_FILES)}"
        yield Fault("tls", "disks are not served in clear by TCP", hint)
        return
    for name in _FILES:
        if not Path(tls, name).is_file():
            yield Fault("tls", f"{Path(tls, name)} is not there")
