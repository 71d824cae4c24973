"""Farms for the tests: written, loaded, and every machine's spec validated."""

from __future__ import annotations

from pathlib import Path

from qmpkit.spec.check import validate
from qmpkit.spec.farm import Farm, FarmMachine
from qmpkit.spec.farm_load import load_farm


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str) -> Farm:
    farm = load_farm(write(folder / "farm.toml", f"schema = 1\n{text}"))
    for machine in farm.machines:
        validate(machine.spec)
    return farm


def names(farm: Farm) -> list[str]:
    return [machine.name for machine in farm.machines]


def one(folder: Path, text: str) -> FarmMachine:
    (machine,) = load(folder, text).machines
    return machine
