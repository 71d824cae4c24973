"""Two kinds of gaps in a farm's texts: `${variable}`, one value for the whole farm, and
`{name}` and `{n}`, which differ from machine to machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qmpkit.spec.farm_faults import Faults, Steps, Where
from qmpkit.spec.paths import EXPANDED
from qmpkit.spec.suggest import suggestion
from qmpkit.spec.variables import HOST_VARIABLES

__all__ = ["braces_doubled", "fill", "pattern_problem", "resolved", "substituted"]

Value = str | int | bool
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_DEPTH_LIMIT = 20
_LENGTH_LIMIT = 1 << 12
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
# `${…}` is a variable of the host, filled in at start: not ours to touch.
_HOST = r"\$\$\{|\$\{[^{}]*\}?"
_GAP = re.compile(_HOST + r"|\{\{|\}\}|\{([^{}]*)\}")
_PADDED = re.compile(r"n:0([1-9])")
_HOST_PLACES = (*EXPANDED, ("kernel", "append"))


def resolved(table: Mapping[str, Any], where: Mapping[str, str], faults: Faults) -> dict[str, Any]:
    """The variables with those inside them filled in; *where* is the path of each.

    The host's own stay: `${cache}`.
    """
    good = {name: value for name, value in table.items() if _is_value(name, value, where, faults)}
    done: dict[str, Any] = {}
    for name in good:
        _resolve(name, good, done, (), where, faults)
    return done


def _is_value(name: str, value: object, where: Mapping[str, str], faults: Faults) -> bool:
    if name in HOST_VARIABLES:
        faults.add(where[name], "is a variable of the host, which cannot be set")
    elif not _NAME.fullmatch(name):
        faults.add(where[name], f"{name!r} is not a name: a letter, then letters, digits, '_', '-'")
    elif not isinstance(value, str | int):
        faults.add(where[name], "must be a text, a whole number or true or false")
    else:
        return True
    return False


def _resolve(
    name: str,
    table: Mapping[str, Any],
    done: dict[str, Any],
    outer: tuple[str, ...],
    where: Mapping[str, str],
    faults: Faults,
) -> None:
    if name in done or name not in table:
        return
    value = table[name]
    if isinstance(value, str):
        inner = set(_REFERENCE.findall(value))
        if inner & {*outer, name}:
            faults.add(where[name], f"{value!r} comes back to itself")
            inner, value = set(), ""
        elif len(outer) >= _DEPTH_LIMIT:
            faults.add(where[name], f"variables are nested more than {_DEPTH_LIMIT} deep")
            inner, value = set(), ""
        for other in sorted(inner):
            _resolve(other, table, done, (*outer, name), where, faults)
        value = _filled(value, done, where[name], faults)
    done[name] = value


def substituted(
    value: Any, steps: Steps, variables: Mapping[str, Any], where: Where, faults: Faults
) -> Any:
    """*value* with every `${variable}` in its texts replaced.

    A text that is nothing but one has its value, a number too.
    """
    if isinstance(value, dict):
        return {
            key: substituted(item, (*steps, key), variables, where, faults)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            substituted(item, (*steps, number), variables, where, faults)
            for number, item in enumerate(value)
        ]
    if not isinstance(value, str) or "${" not in value:
        return value
    done = _filled(value, variables, where(steps), faults)
    if not isinstance(done, str) or _is_host_place(steps):
        return done
    for name in _REFERENCE.findall(done):
        if name:
            hint = "in paths and kernel.append"
            faults.add(where(steps), f"the host's ${{{name}}} cannot stand here", hint)
    return done.replace("$${", "${")


def _is_host_place(steps: Steps) -> bool:
    inner = steps[1:] if steps[0] == "defaults" else steps[2:]
    return tuple("*" if isinstance(step, int) else step for step in inner) in _HOST_PLACES


def _filled(text: str, variables: Mapping[str, Any], path: str, faults: Faults) -> Any:
    whole = _REFERENCE.fullmatch(text)
    if whole and whole[1] in variables and text.endswith("}"):
        return variables[whole[1]]
    room = _LENGTH_LIMIT

    def value_of(match: re.Match[str]) -> str:
        nonlocal room
        name = match[1]
        if match[0] == "$${" or (name in HOST_VARIABLES and match[0].endswith("}")):
            return match[0]
        if not match[0].endswith("}"):
            faults.add(path, f"{match[0]!r} has no closing brace", "$${ for a plain ${")
        elif name not in variables:
            known = [*variables, *HOST_VARIABLES]
            hint = suggestion(name, known) or f"known: {', '.join(sorted(known))}"
            faults.add(path, f"unknown variable ${{{name}}}", hint)
        else:
            value = variables[name]
            text = str(value).lower() if isinstance(value, bool) else str(value)
            room -= len(text)
            if room >= 0:
                return text
            # Ten variables, each of the one before ten times over, would be gigabytes.
            faults.add(path, f"variables add more than {_LENGTH_LIMIT} characters to it")
        return ""

    done = _REFERENCE.sub(value_of, text)
    return done if room >= 0 else ""


def pattern_problem(
    text: str, known: Iterable[str] = ("name", "n"), *, path: bool = False
) -> tuple[str, str] | None:
    """What is wrong with the gaps of a pattern and a hint; None when nothing is.

    In a *path* a name fills one part: what comes after it may not lead out again.
    """
    names = [match[1] for match in _GAP.finditer(text) if match[1] is not None]
    for name in names:
        if name not in known and not ("n" in known and _PADDED.fullmatch(name)):
            listed = ", ".join(f"{{{item}}}" for item in known)
            hint = suggestion(name, known) or f"known: {listed}; {{{{ for a plain {{"
            return f"{text!r} has an unknown gap {{{name}}}", hint
    if path and names and ".." in text[text.index("{" + names[0]) :].split("/"):
        return f"{text!r} leads out of its directory after {{{names[0]}}}", "leave '..' out"
    return None


def fill(text: str, values: Mapping[str, str | int]) -> str:
    """A pattern without faults with its gaps filled in; `{n:02}` is a number of two digits."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] is None:
            return match[0]
        if padded := _PADDED.fullmatch(match[1]):
            return str(values["n"]).zfill(int(padded[1]))
        # A name may hold what would be a variable of the host in a path.
        return str(values[match[1]]).replace("${", "$${")

    return _GAP.sub(value_of, text)


def braces_doubled(text: str) -> str:
    """*text* as a pattern that fills in to *text*, whatever braces it has."""
    parts = re.split(f"({_HOST})", text)
    return "".join(
        part if number % 2 else part.replace("{", "{{").replace("}", "}}")
        for number, part in enumerate(parts)
    )
