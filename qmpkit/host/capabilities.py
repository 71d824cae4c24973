"""What a QEMU binary can do: the facts, and where they are remembered between programs."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from qmpkit._paths import cache_dir
from qmpkit.qmp.schema import Schema

__all__ = [
    "Capabilities",
    "MachineType",
    "Stamp",
    "load",
    "load_schema",
    "store",
    "store_schema",
]

T = TypeVar("T")

log = logging.getLogger("qmpkit.host")

# Counts up whenever a field below changes its meaning: older entries are then asked for again.
_SCHEMA = 3


@attrs.frozen
class MachineType:
    """One line of `query-machines`: `name` is versioned, `alias` its short name ("" for none)."""

    name: str
    alias: str = ""
    default: bool = False
    max_cpus: int = 1
    default_cpu: str = ""
    ram_id: str = ""
    deprecated: bool = False


@attrs.frozen
class Capabilities:
    """What one QEMU binary answered about itself.

    `version` is (major, minor, micro), `package` the distribution's version,
    `arch` the guest architecture, `accelerators` those built in ("kvm", "tcg", …),
    `cpu_models` is empty where QEMU cannot list them, `commands` the QMP commands,
    `run_with_user` whether `-run-with user=` exists (it replaces `-runas`),
    `sandbox` whether `-sandbox` does, `aio` the ways of disk I/O that it was built with,
    `vq_mapping` whether the queues of one disk can be divided among iothreads (9.0).
    """

    version: tuple[int, int, int]
    package: str
    arch: str
    accelerators: tuple[str, ...]
    machines: tuple[MachineType, ...]
    cpu_models: tuple[str, ...]
    commands: frozenset[str]
    run_with_user: bool
    sandbox: bool = True
    aio: tuple[str, ...] = ("threads", "native")
    vq_mapping: bool = False

    def machine(self, name: str) -> MachineType | None:
        """The machine type called *name*, by its own name or by its alias."""
        names = (found for found in self.machines if name and name in (found.name, found.alias))
        return next(names, None)

    def similar_machines(self, name: str) -> list[str]:
        """Up to three names close to *name*, aliases first."""
        names = [found.alias for found in self.machines if found.alias]
        names += [found.name for found in self.machines]
        return difflib.get_close_matches(name, names, n=3, cutoff=0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is stored."""
        plain = attrs.asdict(self)
        plain["commands"] = sorted(self.commands)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Capabilities:
        """The reverse of `to_dict`; KeyError, TypeError or ValueError when it is not that."""
        major, minor, micro = (int(part) for part in plain["version"])
        return cls(
            version=(major, minor, micro),
            package=str(plain["package"]),
            arch=str(plain["arch"]),
            accelerators=_words(plain["accelerators"]),
            machines=tuple(MachineType(**machine) for machine in plain["machines"]),
            cpu_models=_words(plain["cpu_models"]),
            commands=frozenset(_words(plain["commands"])),
            run_with_user=bool(plain["run_with_user"]),
            sandbox=bool(plain["sandbox"]),
            aio=_words(plain["aio"]),
            vq_mapping=bool(plain["vq_mapping"]),
        )


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TypeError(f"expected a list of words, not {value!r}")
    return tuple(value)


@attrs.frozen
class Stamp:
    """Which file a binary is; an upgrade in place changes at least one of these."""

    path: str
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of what *path* leads to; blocking, raises OSError."""
        found = path.stat()
        return cls(str(path), found.st_ino, found.st_size, found.st_mtime_ns)

    @property
    def entry(self) -> Path:
        """Where the answers of this path's binary are kept, whatever its version."""
        return self._beside("json")

    @property
    def schema_entry(self) -> Path:
        """Where its QMP schema is kept: apart, for it is 200 KB and no start needs it."""
        return self._beside("schema.json")

    def _beside(self, suffix: str) -> Path:
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:24]
        return cache_dir() / "binaries" / f"{digest}.{suffix}"


def load(stamp: Stamp) -> Capabilities | None:
    """What was stored for this very file; None when nothing usable is there.  Blocking, 0.2 ms."""
    return _load(stamp.entry, stamp, lambda entry: Capabilities.from_dict(entry["capabilities"]))


def load_schema(stamp: Stamp) -> Schema | None:
    """The QMP schema that was stored for this very file; None as for `load`.  Blocking, 4 ms."""
    return _load(stamp.schema_entry, stamp, lambda entry: Schema(entry["entities"]))


def _load(path: Path, stamp: Stamp, build: Callable[[Mapping[str, Any]], T]) -> T | None:
    try:
        entry = json.loads(path.read_bytes())
        if entry["schema"] != _SCHEMA or entry["stamp"] != attrs.asdict(stamp):
            return None
        return build(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.info("the cache entry %s is unusable and is made again: %r", path, error)
        return None


def store(stamp: Stamp, capabilities: Capabilities) -> None:
    """Remember; readers see the old entry or the new one, never half of one.  Blocking.

    A cache that cannot be written costs the next program 80 ms and nothing else.
    """
    _store(stamp.entry, stamp, capabilities=capabilities.to_dict())


def store_schema(stamp: Stamp, schema: Schema) -> None:
    """Remember the QMP schema, in the same way."""
    _store(stamp.schema_entry, stamp, entities=schema.entities)


def _store(path: Path, stamp: Stamp, **content: object) -> None:
    entry = {"schema": _SCHEMA, "stamp": attrs.asdict(stamp), **content}
    draft = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        draft.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            draft.write_text(json.dumps(entry), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        log.info("cannot write the cache entry %s: %s", path, error)
