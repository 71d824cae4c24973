"""What callers have asked for, looked at before anything is started.  Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from qmpkit.errors import Fault

__all__ = ["count_faults", "flag_faults", "folder_faults", "service_faults"]

_SERVICE = re.compile(r"[^\s-]\S*")


def count_faults(name: str, value: object, least: int) -> Iterator[Fault]:
    """Of the argument *name*, a number of machines."""
    if isinstance(value, bool) or not isinstance(value, int):
        yield Fault(name, f"is a whole number from {least} on, not {value!r}")
    elif value < least:
        yield Fault(name, f"counts from {least}, not from {value}")


def flag_faults(**flags: object) -> Iterator[Fault]:
    """Of arguments that are True or False, by their names."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            yield Fault(name, f"is True or False, not {value!r}")


def folder_faults(name: str, value: object) -> Iterator[Fault]:
    """Of the argument *name*, a folder or None."""
    if value is None:
        return
    if not isinstance(value, str | os.PathLike):
        yield Fault(name, f"is the path of a folder, not {value!r}")
    elif not os.fspath(value):
        yield Fault(name, "the path is empty")


def service_faults(services: Sequence[str], *, twins: bool) -> Iterator[Fault]:
    """Of the names of services in a guest, each a word of the line that tells of it."""
    if isinstance(services, str | bytes) or not isinstance(services, Sequence):
        yield Fault("services", f"is a list of names, not {services!r}", 'services=["nginx"]')
        return
    for number, service in enumerate(services):
        if not isinstance(service, str) or not _SERVICE.fullmatch(service):
            yield Fault(f"services[{number}]", f"{service!r} is no service's name", '"nginx"')
    if twins and services:
        message = "nothing is asked of a guest whose clones are twins"
        yield Fault("services", message, "leave out either (`services`, --service; --twins)")
