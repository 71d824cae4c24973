"""How a machine is moved: by what way, how fast, with what it may cost the guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.network import inet_address
from qmpkit.spec.sizes import KIB, Size, format_size, to_bytes

__all__ = ["Compression", "MigrationOptions", "Way"]

Way = Literal["fd", "unix", "tcp", "file"]
Compression = Literal["none", "zlib", "zstd"]

_MOST_CHANNELS = 255
_MOST_DOWNTIME = 2000.0  # seconds, as QEMU has it
_LEAST_BANDWIDTH = KIB
_MOST_BANDWIDTH = 1 << 60  # QEMU counts it in 64 bits
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _bandwidth(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "max_bandwidth")


def _optional_path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value).absolute()


@attrs.frozen(kw_only=True)
class MigrationOptions:
    """How a migration is done.  SpecInvalid with everything that is wrong, at once.

    `way`: what the guest's memory goes through: "fd", a pair of connected sockets, which no
    stranger can reach; "unix", a socket in a directory of its own; "tcp", a port of `address`
    ("127.0.0.1:0", port 0 being any); "file", a new file at `file`, which is removed
    afterwards: the guest stands still while it is loaded.
    `tls`: for "tcp", the folder of QEMU's certificates (ca-cert.pem, and the cert and key of
    server and client, each checked by the other), or of a shared secret (keys.psk, with a key
    of the user "qemu"); memory goes in clear to this host alone.
    `max_bandwidth`: bytes ("100MiB") a second at most; None is as fast as it goes.
    `downtime`: seconds that the guest may stand still as estimated by QEMU, and
    `max_downtime` what a policy may raise that to: 2, or as much as `downtime`.
    `channels`: connections that memory goes through at once (multifd; not by "fd" and
    "file"), 0 for one and no more; with some, `compression` is "zlib" or "zstd".
    With the policy "postcopy", once the guest runs at the destination: `recover_within` so
    many seconds a connection that is cut is to be made anew, and `finish_within` the rest of
    the memory is to be there after a cancellation; after that the guest is lost.
    """

    way: Way = "fd"
    address: str = "127.0.0.1:0"
    file: Path | None = attrs.field(default=None, converter=_optional_path)
    tls: Path | None = attrs.field(default=None, converter=_optional_path)
    max_bandwidth: Size | None = attrs.field(default=None, converter=_bandwidth)
    downtime: float = 0.3
    max_downtime: float = attrs.field()
    channels: int = 0
    compression: Compression = "none"
    recover_within: float = 60.0
    finish_within: float = 300.0

    @max_downtime.default
    def _as_much_as_downtime(self) -> float:
        return max(2.0, self.downtime)

    def __attrs_post_init__(self) -> None:
        if faults := tuple(_faults(self)):
            raise SpecInvalid(faults, "how to migrate")


def _faults(options: MigrationOptions) -> Iterator[Fault]:
    for name, choices in (("way", get_args(Way)), ("compression", get_args(Compression))):
        if (value := getattr(options, name)) not in choices:
            yield Fault(name, f"cannot be {value!r}", f"one of {', '.join(map(repr, choices))}")
    yield from _address_faults(options)
    if (options.way == "file") != (options.file is not None):
        missing = options.file is None
        message = "is missing" if missing else f"no file is needed by way of {options.way!r}"
        hint = "a file to be made (--file)" if missing else 'way="file" (--way file)'
        yield Fault("file", message, hint)
    yield from _rate_faults(options)
    yield from _channel_faults(options)


def _address_faults(options: MigrationOptions) -> Iterator[Fault]:
    if options.way != "tcp":
        if options.tls is not None:
            yield Fault("tls", f"{options.way!r} needs none: no stranger can reach it")
        return
    place = inet_address(options.address)
    if place is None:
        yield Fault("address", f"{options.address!r} is not HOST:PORT", '"127.0.0.1:0"')
    elif options.tls is None and place[0] not in _LOOPBACK:
        hint = "a folder of certificates (--tls)"
        yield Fault("tls", "memory is not sent in clear to other hosts", hint)


def _rate_faults(options: MigrationOptions) -> Iterator[Fault]:
    rate = options.max_bandwidth
    if rate is not None and rate < _LEAST_BANDWIDTH:
        message = f"{format_size(rate)} a second is less than {format_size(_LEAST_BANDWIDTH)}"
        yield Fault("max_bandwidth", message, "more (--bandwidth)")
    elif rate is not None and rate > _MOST_BANDWIDTH:
        message = f"{format_size(rate)} a second is more than {format_size(_MOST_BANDWIDTH)}"
        yield Fault("max_bandwidth", message, "without one (--bandwidth) it goes as fast as it can")
    for name in ("recover_within", "finish_within"):
        if not (seconds := getattr(options, name)) >= 0:
            yield Fault(name, f"is a number of seconds, 0 or more, not {seconds!r}")
    if not 0.001 <= options.downtime <= _MOST_DOWNTIME:
        message = f"is from 0.001 to {_MOST_DOWNTIME:g} seconds, not {options.downtime!r}"
        yield Fault("downtime", message)
    elif not options.downtime <= options.max_downtime <= _MOST_DOWNTIME:
        message = f"is from downtime to {_MOST_DOWNTIME:g} seconds, not {options.max_downtime!r}"
        yield Fault("max_downtime", message)


def _channel_faults(options: MigrationOptions) -> Iterator[Fault]:
    if not 0 <= options.channels <= _MOST_CHANNELS:
        yield Fault("channels", f"is from 0 to {_MOST_CHANNELS}, not {options.channels!r}")
    elif options.channels and options.way not in ("unix", "tcp"):
        message = f"several need connections, and {options.way!r} has one"
        yield Fault("channels", message, 'way="unix" or "tcp" (--way)')
    elif options.compression not in ("none", None) and not options.channels:
        hint = "channels=2 (--channels 2)"
        yield Fault("compression", "is done by channels, and there are none", hint)
