"""`key=value` words: into a profile's table (`--set`) or a QMP command's arguments.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from qmpkit.errors import Fault, SpecInvalid

__all__ = ["apply_overrides", "arguments_from", "parse_value"]

_STEP = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)", re.ASCII)
_INDEX = re.compile(r"\[(\d+)\]", re.ASCII)
# A bare value means this key of the table; the table's other keys stay as they are.
_MAIN_KEY = {"memory": "size", "cpu": "cpus"}

Step = str | int


class _Wrong(Exception):
    """A word that cannot be understood, and why."""


def parse_value(text: str) -> Any:
    """JSON when *text* is JSON (numbers, true, null, lists, "quoted"), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def arguments_from(words: Iterable[str]) -> dict[str, Any]:
    """Arguments of a QMP command from `k=v`, `a.b=v` and `{"json": "objects"}`.

    Raises SpecInvalid with every word that cannot be understood.
    """
    arguments: dict[str, Any] = {}
    faults: list[Fault] = []
    for word in words:
        try:
            for path, value in _assignments(word):
                _put_new(arguments, path, value)
        except _Wrong as error:
            faults.append(Fault(repr(word), str(error)))
    if faults:
        raise SpecInvalid(faults, "arguments")
    return arguments


def _assignments(word: str) -> Iterable[tuple[list[str], Any]]:
    if word.startswith("{"):
        try:
            return [([key], value) for key, value in json.loads(word).items()]
        except ValueError as error:
            raise _Wrong(f"this is not JSON: {error}") from None
    key, sign, text = word.partition("=")
    path = key.split(".")
    if not sign or not all(path):
        raise _Wrong('write key=value, for example device=disk0 or options.size="1GiB"')
    return [(path, parse_value(text))]


def _put_new(table: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for step in parents:
        inner = table.setdefault(step, {})
        if not isinstance(inner, dict):
            raise _Wrong(f"{step!r} is given a value of its own and keys below it")
        table = inner
    if last in table:
        raise _Wrong(f"{'.'.join(path)!r} is given twice")
    table[last] = value


def apply_overrides(data: dict[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """*data* (a spec's table) with every `path=value` put in; `path=null` takes one out.

    Paths are spelled as faults spell them: `kernel.append`, `disks[0].cache`; a table
    that is missing is made, `disks[1]` of one disk adds one.  Whether a key exists is
    not judged here.  Raises SpecInvalid with every word that cannot be understood.
    """
    faults: list[Fault] = []
    for word in words:
        try:
            _override(data, word)
        except _Wrong as error:
            faults.append(Fault(f"--set {word}", str(error)))
    if faults:
        raise SpecInvalid(faults)
    return data


def _override(data: dict[str, Any], word: str) -> None:
    path, sign, text = word.partition("=")
    if not sign:
        raise _Wrong("write key=value, for example memory=2GiB or kernel.append=quiet")
    _assign(data, _completed(data, _steps(path)), parse_value(text))


def _steps(path: str) -> list[Step]:
    steps: list[Step] = []
    for part in path.split("."):
        found = _STEP.fullmatch(part)
        if found is None:
            raise _Wrong(f"{path!r} is no key; write for example cpu.cpus or disks[0].cache")
        steps.append(found[1])
        steps += [int(number) for number in _INDEX.findall(found[2])]
    return steps


def _completed(data: dict[str, Any], steps: list[Step]) -> list[Step]:
    """`memory=2GiB` changes the size alone when the profile says more about the memory."""
    first = steps[0]
    main = _MAIN_KEY.get(first) if isinstance(first, str) else None
    if main and len(steps) == 1 and isinstance(data.get(str(first)), dict):
        return [first, main]
    return steps


def _assign(data: Any, steps: list[Step], value: Any) -> None:
    for step, following in pairwise(steps):
        data = _inside(data, step, [] if isinstance(following, int) else {})
    match data, steps[-1]:
        case list(), int(place) if place <= len(data):
            data[place : place + 1] = [] if value is None else [value]
        case dict(), str(key) if value is None:
            data.pop(key, None)
        case dict(), str(key):
            data[key] = value
        case _:
            raise _misplaced(data, steps[-1])


def _inside(data: Any, step: Step, fresh: Any) -> Any:
    """The table or list at *step*; *fresh* is put there when there is nothing yet."""
    match data, step:
        case list(), int(place) if place <= len(data):
            data[place:] = data[place:] or [fresh]
            return data[place]
        case dict(), str(key):
            return data.setdefault(key, fresh)
    raise _misplaced(data, step)


def _misplaced(data: Any, step: Step) -> _Wrong:
    if isinstance(step, str):
        return _Wrong(f"{step!r} stands where there is no table")
    if isinstance(data, list):
        return _Wrong(f"[{step}] is beyond the list, which has length {len(data)}")
    return _Wrong(f"[{step}] stands where there is no list")
