"""What a machine is put together from, one part after another: as it is started, and as it changes.

Two specs differ in parts: those are what is added to a machine that runs, and taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs

from qmpkit.errors import Fault
from qmpkit.spec import devices
from qmpkit.spec.chardev import NamedEndpoint
from qmpkit.spec.encryption import BaseImage
from qmpkit.spec.layout import layout_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import chardev_id, netdev_id
from qmpkit.spec.network import Cable, Nic, link_needed, netdev_of
from qmpkit.spec.options import Json
from qmpkit.spec.peripherals import Share, device_chardev

__all__ = ["Part", "PartKind", "names_of", "parts_between", "parts_of", "refused_changes"]

PartKind = Literal["object", "chardev", "node", "netdev", "device", "fdset", "fd"]


@attrs.frozen
class Part:
    """One thing that QEMU is told to have: by its kind, its id there, and how it is made.

    `arguments` are those of `object-add`, `blockdev-add`, `netdev_add`, `chardev-add`,
    `device_add`; None of one that is only to be taken away.
    """

    kind: PartKind
    id: str
    arguments: Json | None = attrs.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The text by which it is on record: "device/nic1"."""
        return f"{self.kind}/{self.id}"

    @classmethod
    def named(cls, name: str) -> Part:
        """The part of that `name`; ValueError when there is none such."""
        kind, _, ident = name.partition("/")
        if kind not in PartKind.__args__ or not ident:  # type: ignore[attr-defined]
            raise ValueError(f"{name!r} names no part of a machine")
        return cls(kind, ident)  # type: ignore[arg-type]


def names_of(parts: Iterable[Part]) -> tuple[str, ...]:
    """Their names, as they are on record."""
    return tuple(part.name for part in parts)


def parts_of(
    spec: MachineSpec,
    endpoints: Mapping[str, Cable] | None = None,
    bases: Mapping[str, Sequence[BaseImage]] | None = None,
) -> tuple[Part, ...]:
    """All parts of *spec* but what the board brings, each after those that it needs.

    *endpoints*: of NICs and shares whose cable is handed over (`links`, `served`); the back end
    of one that is not among them can only be taken away.  *bases*: the images below encrypted
    disks.
    """
    placed = layout_of(spec)
    rows: list[Part] = []
    rows += [Part("object", str(it["id"]), it) for it in devices.objects(spec)]
    shares = (it for it in spec.devices if isinstance(it, Share))
    rows += [_channel(share, endpoints or {}) for share in shares]
    rows += [Part("node", str(it["node-name"]), it) for it in devices.blockdevs(spec, bases)]
    rows += [_netdev(nic, endpoints or {}) for nic in spec.nics]
    rows += [Part("device", str(it["id"]), it) for it in devices.devices(spec, placed)]
    return tuple(rows)


def _channel(share: Share, endpoints: Mapping[str, Cable]) -> Part:
    cable = endpoints.get(share.id)
    handed = cable if isinstance(cable, NamedEndpoint) else None
    return Part("chardev", chardev_id(share.id), device_chardev(share, handed))


def _netdev(nic: Nic, endpoints: Mapping[str, Cable]) -> Part:
    if link_needed(nic) and nic.id not in endpoints:
        return Part("netdev", netdev_id(nic.id))
    return Part("netdev", netdev_id(nic.id), netdev_of(nic, endpoints.get(nic.id)))


def parts_between(old: Sequence[Part], new: Sequence[Part]) -> tuple[tuple[Part, ...], ...]:
    """What is to be taken away from *old*, in that order, and then added, to come to *new*."""
    before, after = set(names_of(old)), set(names_of(new))
    going = tuple(part for part in reversed(old) if part.name not in after)
    coming = tuple(part for part in new if part.name not in before)
    return going, coming


def refused_changes(old: Sequence[Part], new: Sequence[Part]) -> list[Fault]:
    """A fault for each part that would have to become another one under the same name."""
    before = {part.name: part.arguments for part in old}
    return [
        Fault(part.id, f"this {part.kind} is there already, and is another one", "restart it")
        for part in new
        if part.name in before and before[part.name] != part.arguments
    ]
