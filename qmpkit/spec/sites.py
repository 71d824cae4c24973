"""Where a machine sits on its host: what a start makes of `cpu.pin = "auto"`.

A machine is declared with the wish, and each start decides anew; what it has decided is
known of the machine that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import attrs

from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import HostPolicy
from qmpkit.spec.resources import AUTO, Pin, to_pin

__all__ = ["Sites", "undecided"]

Bound = tuple[str | None, HostPolicy]
"""NUMA nodes of the host that memory comes from, and how."""


@attrs.frozen
class Sites:
    """The fields of a spec that say it: `cpu.pin`, `resources.emulator`, nodes of memory."""

    pin: Pin
    emulator: str | None
    memory: Bound
    numa: tuple[Bound, ...]

    @classmethod
    def of(cls, spec: MachineSpec) -> Sites:
        """Those of *spec*."""
        return cls(
            spec.cpu.pin,
            spec.resources.emulator,
            (spec.memory.host_nodes, spec.memory.policy),
            tuple((node.host_nodes, node.policy) for node in spec.numa),
        )

    def given_to(self, spec: MachineSpec) -> MachineSpec:
        """*spec*, a machine of as many NUMA nodes, sitting here."""
        nodes, policy = self.memory
        return attrs.evolve(
            spec,
            cpu=attrs.evolve(spec.cpu, pin=self.pin),
            resources=attrs.evolve(spec.resources, emulator=self.emulator),
            memory=attrs.evolve(spec.memory, host_nodes=nodes, policy=policy),
            numa=[
                attrs.evolve(node, host_nodes=nodes, policy=policy)
                for node, (nodes, policy) in zip(spec.numa, self.numa, strict=True)
            ],
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Sites:
        """The reverse of `attrs.asdict`; ValueError or TypeError for what is none."""
        numa = tuple(map(_bound, plain["numa"]))
        return cls(to_pin(plain["pin"]), plain["emulator"], _bound(plain["memory"]), numa)


def _bound(plain: Any) -> Bound:
    nodes, policy = plain
    if policy not in get_args(HostPolicy):
        raise ValueError(f"{policy!r} is no policy")
    return nodes, policy


def undecided(spec: MachineSpec, asked: MachineSpec) -> MachineSpec:
    """*spec*, which a start has made of *asked*, with its wish where to sit."""
    return Sites.of(asked).given_to(spec) if asked.cpu.pin == AUTO else spec
