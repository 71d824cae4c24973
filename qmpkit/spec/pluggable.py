"""One disk, NIC or device alone, as a table: `kind = "disk"`, a NIC's kind, or a device's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.block import Disk
from qmpkit.spec.convert import structure_as, unstructure_any
from qmpkit.spec.faults import collect
from qmpkit.spec.network import NIC_KINDS, Nic
from qmpkit.spec.peripherals import DEVICE_KINDS, Device
from qmpkit.spec.suggest import suggestion

__all__ = ["NETWORK", "PLUGGABLE", "Pluggable", "pluggable_from_dict", "pluggable_to_dict"]

Pluggable = Disk | Nic | Device

PLUGGABLE: Mapping[str, type[Pluggable]] = {"disk": Disk, **NIC_KINDS, **DEVICE_KINDS}
"""The class of each `kind`."""

NETWORK = "network"
"""The kind of a NIC that is asked for by the name of a farm's network."""


def pluggable_from_dict(table: Mapping[str, object], source: str = "") -> Pluggable:
    """The value that is written in *table*; SpecInvalid with every fault."""
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in PLUGGABLE:
        hint = suggestion(kind, tuple(PLUGGABLE)) or f"one of {', '.join(PLUGGABLE)}"
        raise SpecInvalid([Fault("kind", f"cannot be {kind!r}", hint)], source)
    rest = {key: value for key, value in table.items() if key != "kind"}
    try:
        return structure_as(rest, PLUGGABLE[kind])
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([finding.fault for finding in collect(error)], source) from None


def pluggable_to_dict(value: Pluggable) -> dict[str, Any]:
    """The reverse, without what is not set."""
    kind = next(name for name, cls in PLUGGABLE.items() if cls is type(value))
    plain = unstructure_any(value)
    return {"kind": kind, **{key: item for key, item in plain.items() if item is not None}}
