"""`qmpkit profiles` and `qmpkit argv`, and how every command reads its profile."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmpkit.cli.exits import Refusal
from qmpkit.cli.overrides import apply_overrides
from qmpkit.cli.talk import print_json, stdout_console, talk
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.profile import load_profile, profile_names
from qmpkit.spec.sizes import format_size

__all__ = ["chosen_spec", "list_profiles", "overridden", "print_argv"]


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
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "MACHINE", "ACCEL", "MEMORY", "CPUS"):
        table.add_column(heading, no_wrap=True)
    table.add_column("DESCRIPTION")
    for name, spec in specs.items():
        size = format_size(spec.memory.size)
        cpus = str(spec.cpu.cpus)
        table.add_row(name, spec.machine, spec.accel, size, cpus, spec.description)
    stdout_console().print(table)


def _row(name: str, spec: MachineSpec) -> dict[str, Any]:
    return {
        "name": name,
        "machine": spec.machine,
        "accel": spec.accel,
        "memory": spec.memory.size,
        "cpus": spec.cpu.cpus,
        "description": spec.description,
    }


async def print_argv(
    profile: str, overrides: Sequence[str], *, paused: bool, sockets: Path, as_json: bool
) -> None:
    """Print the command that starts the profile on this host; starts nothing but QEMU's probe."""
    from qmpkit.host.resolve import resolve
    from qmpkit.spec.argv import pretty, render
    from qmpkit.spec.chardev import Endpoint, PathEndpoint
    from qmpkit.spec.machine import channels, links

    resolution = await resolve(chosen_spec(profile, overrides), check=False)
    for warning in resolution.warnings:
        talk.warn(warning)
    spec = resolution.spec
    if cables := links(spec):
        raise Refusal(
            f"{', '.join(cables)}: this NIC's cable is a socket that only a running program "
            "can hand over. Cure: give the NIC an address"
        )
    endpoints: dict[str, Endpoint] = {
        channel: PathEndpoint(str(sockets / f"{spec.name}-{channel}.sock"))
        for channel in channels(spec)
    }
    argv = render(spec, resolution.facts, endpoints, paused=paused)
    _note_missing_files(spec)
    print(json.dumps(argv, ensure_ascii=False) if as_json else pretty(argv))
    if sys.stdout.isatty() and not as_json:
        monitor = sockets / f"{spec.name}-qmp.sock"
        talk.note(f"Once it runs: qmpkit qmp {shlex.quote(str(monitor))} query-status")


def _note_missing_files(spec: MachineSpec) -> None:
    for disk in spec.disks:
        if disk.make is not None and not Path(disk.file).exists():
            talk.note(f"{disk.file} does not exist yet: `qmpkit run` makes it, this command not")
