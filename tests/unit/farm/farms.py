"""Farms in a few words, and what a supervisor has made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpkit.farm import Outcome
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_data import farm_from_dict

PLAIN = {"accel": "tcg", "memory": "16MiB"}


def farm(networks: Mapping[str, Any] | None = None, /, **tables: Mapping[str, Any]) -> Farm:
    """`farm(web={"count": 2})`: tables of machines that a fake can play."""
    machines = {name: {**PLAIN, **table} for name, table in tables.items()}
    return farm_from_dict({"schema": 1, "networks": networks or {}, "machines": machines})


def did(outcome: Outcome) -> dict[str, str]:
    return {name: result.did for name, result in outcome.machines.items()}
