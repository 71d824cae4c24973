"""What a machine's record takes over when the machine has changed while it runs.  Pure."""

from __future__ import annotations

from typing import Any

import attrs

from qmpkit.spec.cpu import Cpu
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic, UserNic
from qmpkit.spec.resources import Resources

__all__ = ["following", "with_forwards_of"]


def following(record: MachineSpec, before: MachineSpec, after: MachineSpec) -> MachineSpec:
    """*record* with what has changed from *before* to *after*, specs of the machine that runs.

    The record says some things in other words than the machine, which has NICs plugged into
    its farm's networks and a place on its host, and its owner may amend it meanwhile: those
    stay as they are.
    """
    return attrs.evolve(
        after,
        description=record.description,
        nics=_nics(record.nics, before.nics, after.nics),
        cpu=_cpu(record.cpu, before.cpu, after.cpu),
        # A start has put these where it has put the vCPUs; the next one does so anew.
        memory=attrs.evolve(record.memory, **_changed(before.memory, after.memory)),
        numa=record.numa if after.numa == before.numa else after.numa,
        resources=_resources(record.resources, before.resources, after.resources),
    )


def _resources(record: Resources, before: Resources, after: Resources) -> Resources:
    return attrs.evolve(record, **_changed(before, after))


def _changed(before: object, after: Any) -> dict[str, Any]:
    """The fields of *after* that are others in *before*."""
    return {
        field.name: value
        for field in attrs.fields(type(after))
        if (value := getattr(after, field.name)) != getattr(before, field.name)
    }


def _cpu(record: Cpu, before: Cpu, after: Cpu) -> Cpu:
    """What a start has made of `cpu.pin = "auto"` is not to be declared."""
    return after if after.pin != before.pin else attrs.evolve(after, pin=record.pin)


def _nics(record: tuple[Nic, ...], before: tuple[Nic, ...], after: tuple[Nic, ...]) -> list[Nic]:
    known, old = {nic.id: nic for nic in record}, {nic.id: nic for nic in before}
    return [
        _nic(known[nic.id], old[nic.id], nic) if nic.id in known and nic.id in old else nic
        for nic in after
    ]


def _nic(record: Nic, before: Nic, after: Nic) -> Nic:
    if type(before) is not type(after):
        return after  # another back end
    changed = _changed(before, after)
    changed["bus"] = after.bus  # by whoever has pinned it
    mine = {name: value for name, value in changed.items() if hasattr(record, name)}
    return attrs.evolve(record, **mine)


def with_forwards_of(nics: tuple[Nic, ...], others: tuple[Nic, ...]) -> list[Nic]:
    """*nics* with the forwards that those of the same id have in *others*."""
    wanted = {nic.id: nic.forwards for nic in others if isinstance(nic, UserNic)}
    return [
        attrs.evolve(nic, forwards=wanted[nic.id])
        if isinstance(nic, UserNic) and nic.id in wanted
        else nic
        for nic in nics
    ]
