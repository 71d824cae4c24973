"""`${name}` in paths and kernel words: kept in the spec, filled in for one start.

So a profile can name what only the host knows (its TSC frequency, its cache
directory) and still be the same text everywhere. `$${` stands for a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import structure, unstructure
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import EXPANDED, map_fields, texts_of
from qmpkit.spec.suggest import suggestion

__all__ = ["HOST_VARIABLES", "expand", "variables_in"]

HOST_VARIABLES = ("tsc_khz", "cache")
"""What every host is asked for: its time-stamp counter in kHz, its cache directory."""

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")


def expand(spec: MachineSpec, variables: Mapping[str, str | None]) -> MachineSpec:
    """`spec` with every `${name}` replaced by its value.

    None means that this host has no such value: a word of `kernel.append` that asks for
    it is dropped, a path that does is a fault. Raises `SpecInvalid` with all faults.
    """
    if not variables_in(spec):
        return spec
    faults: list[Fault] = []
    table = map_fields(unstructure(spec), EXPANDED, _filler(variables, faults))
    expanded = structure(table)
    if spec.kernel is not None and expanded.kernel is not None:
        append = _append(spec.kernel.append, variables, faults)
        expanded = attrs.evolve(expanded, kernel=attrs.evolve(expanded.kernel, append=append))
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r}")
    return expanded


def variables_in(spec: MachineSpec) -> frozenset[str]:
    """The names (and escapes, as "") that `expand` would have to deal with."""
    texts = texts_of(spec, (*EXPANDED, ("kernel", "append")))
    return frozenset(match[1] or "" for text in texts for match in _REFERENCE.finditer(text))


def _filler(variables: Mapping[str, str | None], faults: list[Fault]) -> Callable[[str, str], str]:
    def fill(where: str, text: str) -> str:
        done, absent = _replace(text, where, variables, faults)
        faults.extend(Fault(where, f"this host has no value for ${{{name}}}") for name in absent)
        return done

    return fill


def _append(text: str, variables: Mapping[str, str | None], faults: list[Fault]) -> str:
    # Split at single spaces, so that a line without variables comes back unchanged.
    words = [_replace(word, "kernel.append", variables, faults) for word in text.split(" ")]
    return " ".join(done for done, absent in words if not absent)


def _replace(
    text: str, where: str, variables: Mapping[str, str | None], faults: list[Fault]
) -> tuple[str, list[str]]:
    """The text filled in, and the variables that have no value on this host."""
    absent: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if match[0] == "$${":
            return "${"
        if not match[0].endswith("}"):
            faults.append(Fault(where, f"{match[0]!r} has no closing brace", "$${ for a plain ${"))
        elif name not in variables:
            hint = suggestion(name, variables) or f"known: {', '.join(sorted(variables))}"
            faults.append(Fault(where, f"unknown variable ${{{name}}}", hint))
        elif (value := variables[name]) is not None:
            return value
        else:
            absent.append(name)
        return ""

    return _REFERENCE.sub(value_of, text), absent
