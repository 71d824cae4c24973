"""The parameters of a migration, each set whether or not it is the default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qmpkit.errors import Fault
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.migration.options import MigrationOptions

__all__ = ["TLS_ID", "UNBOUNDED", "downtime_parameter", "known_parameters", "parameter_faults"]
__all__ += ["parameters_of"]

UNBOUNDED = 1 << 40
"""Bytes a second; QEMU's own bound is 128 MiB, for networks of another time."""

TLS_ID = "qk-migration-tls"
"""The object of each end's certificate, or secret."""

_COMPRESSION = "multifd-compression"
_CHANNELS = "multifd-channels"


async def known_parameters(machine: Monitor) -> Mapping[str, Any]:
    """Those that its QEMU has, as they are (`query-migrate-parameters`)."""
    known: Mapping[str, Any] = await machine.execute("query-migrate-parameters")
    return known


def parameters_of(options: MigrationOptions, known: Collection[str]) -> dict[str, Any]:
    """The argument of `migrate-set-parameters`, for a QEMU that knows parameters of these names.

    Those that an earlier migration may have left are set too.
    """
    bandwidth = UNBOUNDED if options.max_bandwidth is None else options.max_bandwidth
    wanted = {
        "max-bandwidth": bandwidth,
        "max-postcopy-bandwidth": options.max_bandwidth or 0,
        **downtime_parameter(options.downtime),
        _CHANNELS: max(options.channels, 1),
        _COMPRESSION: options.compression,
        "tls-creds": "" if options.tls is None else TLS_ID,
        "tls-hostname": "",
        # Half of its CPU time at once: the first tenths change nothing for a guest that writes.
        "cpu-throttle-initial": 50,
        "cpu-throttle-increment": 20,
    }
    return {name: value for name, value in wanted.items() if name in known}


def downtime_parameter(seconds: float) -> Mapping[str, Any]:
    """The limit of the time that the guest stands still, in QEMU's milliseconds."""
    return {"downtime-limit": max(round(seconds * 1000), 1)}


def parameter_faults(options: MigrationOptions, known: Collection[str], end: str) -> list[Fault]:
    """What is asked for and the QEMU at this *end* has no parameter for."""
    needed = {_CHANNELS: options.channels > 0, _COMPRESSION: options.compression != "none"}
    return [
        Fault(f"parameters.{name}", f"the {end}'s QEMU does not have it", "use a newer QEMU")
        for name, wanted in needed.items()
        if wanted and name not in known
    ]
