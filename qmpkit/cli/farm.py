"""`qmpkit validate`: what a farm.toml describes, or everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qmpkit.cli.exits import Exit
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.farm import Farm, FarmMachine, Joined
from qmpkit.spec.farm_data import machine_to_dict
from qmpkit.spec.farm_load import load_farm
from qmpkit.spec.farm_networks import Network, network_to_table
from qmpkit.spec.network import UserNic
from qmpkit.spec.sizes import format_size

__all__ = ["validate_farm"]


def validate_farm(path: Path, *, as_json: bool) -> int:
    """Print the machines and networks of the farm, or all faults; returns the exit status."""
    try:
        farm = load_farm(path)
    except SpecInvalid as error:
        if not as_json:
            raise
        talk.error(str(error))
        faults = [{"path": f.path, "message": f.message, "hint": f.hint} for f in error.faults]
        print_json({"faults": faults})
        return Exit.MISTAKE
    if as_json:
        networks = {name: network_to_table(network) for name, network in farm.networks.items()}
        machines = [machine_to_dict(machine) for machine in farm.machines]
        print_json({"faults": [], "networks": networks, "machines": machines})
    else:
        _print(farm)
    return Exit.OK


def _print(farm: Farm) -> None:
    headings = ("MACHINE", "BOARD", "MEMORY", "CPUS", "DISKS", "NETWORKS", "PORTS", "RESTART")
    print_table((*headings, "AFTER"), map(_row, farm.machines), prose=False)
    if farm.networks:
        print()
        rows = [_network_row(name, network) for name, network in farm.networks.items()]
        print_table(("NETWORK", "KIND", "MADE OF"), rows, prose=True)
    machines, networks = len(farm.machines), len(farm.networks)
    talk.note(f"no faults: {_counted(machines, 'machine')}, {_counted(networks, 'network')}")


def _row(machine: FarmMachine) -> tuple[str, ...]:
    spec = machine.spec
    return (
        machine.name,
        spec.machine,
        format_size(spec.memory.total),
        str(spec.cpu.present),
        _listed(map(_disk, spec.disks)),
        _listed(map(_joined, machine.networks)) if machine.networks else _kinds(machine),
        _listed(_ports(machine)),
        machine.restart.policy,
        _listed(machine.waits_for),
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "-"


def _disk(disk: Disk) -> str:
    name = Path(disk.file).name or "an empty drive"
    return f"{name} over {Path(disk.make.file).name}" if isinstance(disk.make, Overlay) else name


def _joined(join: Joined) -> str:
    return join.name if join.ip is None else f"{join.name} {join.ip}"


def _kinds(machine: FarmMachine) -> str:
    return _listed(f"({'nat' if isinstance(nic, UserNic) else 'own'})" for nic in machine.spec.nics)


def _ports(machine: FarmMachine) -> Iterable[str]:
    for nic in machine.spec.nics:
        for forward in nic.forwards if isinstance(nic, UserNic) else ():
            yield f"{forward.host or 'any'}:{forward.guest}"


def _network_row(name: str, network: Network) -> tuple[str, ...]:
    table = network_to_table(network)
    kind = table.pop("kind")
    words = [key if value is True else f"{key} {value}" for key, value in table.items() if value]
    return name, kind, _listed(words)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
