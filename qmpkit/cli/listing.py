"""`qmpkit profiles`, and how every command reads its profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qmpkit.cli.overrides import apply_overrides
from qmpkit.cli.talk import print_json
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.profile import load_profile, profile_names
from qmpkit.spec.sizes import format_size

__all__ = ["chosen_spec", "list_profiles", "overridden"]


def chosen_spec(profile: str, overrides: Sequence[str]) -> MachineSpec:
    """The profile with the `--set` words put in; SpecInvalid with every fault."""
    return overridden(load_profile(profile), overrides, profile)


def overridden(spec: MachineSpec, overrides: Sequence[str], source: str) -> MachineSpec:
    """*spec*, which came from *source*, with the `--set` words put in."""
    if not overrides:
        return spec
    table = apply_overrides(spec_to_dict(spec), overrides)
    return spec_from_dict(table, source=f"{source} with --set")


def list_profiles(*, as_json: bool) -> None:
    """Print every shipped profile, as a table or as JSON."""
    specs = {name: load_profile(name) for name in profile_names()}
    if as_json:
        print_json([_row(name, spec) for name, spec in specs.items()])
        return
    from qmpkit.cli.tables import print_table

    headings = ("NAME", "MACHINE", "ACCEL", "MEMORY", "CPUS", "DESCRIPTION")
    print_table(headings, [_cells(name, spec) for name, spec in specs.items()], prose=True)


def _cells(name: str, spec: MachineSpec) -> tuple[object, ...]:
    size = format_size(spec.memory.total)
    return name, spec.machine, spec.accel, size, spec.cpu.present, spec.description


def _row(name: str, spec: MachineSpec) -> dict[str, Any]:
    return {
        "name": name,
        "machine": spec.machine,
        "accel": spec.accel,
        "memory": spec.memory.total,
        "cpus": spec.cpu.present,
        "description": spec.description,
    }
