"""A machine's health checks as a farm.toml lists them: a kind, and settings not yet looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from qmpkit.errors import Fault

__all__ = ["HealthCheck", "health_faults", "to_checks"]


@attrs.frozen
class HealthCheck:
    """One check: `kind` ("agent", "tcp" …) and its settings, plain data."""

    kind: str
    settings: dict[str, Any] = attrs.field(factory=dict)


def to_checks(tables: Iterable[Mapping[str, Any]]) -> tuple[HealthCheck, ...]:
    """Tables without faults as values."""
    return tuple(
        HealthCheck(table["kind"], {k: v for k, v in table.items() if k != "kind"})
        for table in tables
    )


def health_faults(tables: Iterable[Mapping[str, Any]]) -> Iterator[Fault]:
    """Tables that are no checks."""
    for number, table in enumerate(tables):
        where = f"health[{number}]"
        if "kind" not in table:
            yield Fault(f"{where}.kind", "is missing", 'kind = "agent"')
        elif not isinstance(table["kind"], str) or not table["kind"]:
            yield Fault(f"{where}.kind", f"must be a text, not {table['kind']!r}")
        try:
            json.dumps(table, allow_nan=False)
        except (TypeError, ValueError) as error:
            yield Fault(where, f"cannot be written as JSON: {error}")
