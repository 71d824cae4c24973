"""Which texts of a spec are paths."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from qmpkit.spec.convert import unstructure
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import EXPANDED, map_fields, texts_of
from tests.unit.spec.strategies import machines

PATTERNS = (*EXPANDED, ("kernel", "append"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines())
def test_a_spec_names_the_texts_that_its_table_does(spec: MachineSpec) -> None:
    found: list[str] = []

    def note(_: str, text: str) -> str:
        found.append(text)
        return text

    map_fields(unstructure(spec), PATTERNS, note)
    assert sorted(texts_of(spec, PATTERNS)) == sorted(found)
