"""What a QEMU's own schema says it can do: facts in place of version numbers.

`query-qmp-schema` (QEMU 2.5 and later) gives a flat list in which the types have
no telling names.  Here it is asked by the names that people know: commands,
events, and dotted paths of members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qmpkit.qmp.session import Session

__all__ = ["Schema", "fetch_schema"]

Entity = Mapping[str, Any]


class Schema:
    """One binary's QMP schema.

    A path is member names joined by dots (`"cache.direct"`).  It goes through
    arrays to their elements, and through unions and alternates to every branch:
    a path exists when any branch has it.  An empty path is the whole.
    `entities` is the list as QEMU gave it.
    """

    def __init__(self, entities: Sequence[Entity]) -> None:
        self.entities = entities
        self._types: dict[str, Entity] = {}
        self._commands: dict[str, Entity] = {}
        self._events: dict[str, Entity] = {}
        homes = {"command": self._commands, "event": self._events}
        for entity in entities:
            homes.get(entity["meta-type"], self._types)[entity["name"]] = entity

    @property
    def commands(self) -> frozenset[str]:
        """The names of all commands."""
        return frozenset(self._commands)

    @property
    def events(self) -> frozenset[str]:
        """The names of all events."""
        return frozenset(self._events)

    def has_command(self, name: str) -> bool:
        """Whether the command exists."""
        return name in self._commands

    def has_event(self, name: str, path: str = "") -> bool:
        """Whether the event exists and its data can have the member at *path*."""
        return name in self._events and self._exists(self._events[name]["arg-type"], path)

    def allows_oob(self, command: str) -> bool:
        """Whether `execute(..., oob=True)` is allowed for the command."""
        return bool(self._commands.get(command, {}).get("allow-oob", False))

    def accepts(self, command: str, path: str) -> bool:
        """Whether the command exists and takes the argument at *path*."""
        entity = self._commands.get(command)
        return entity is not None and self._exists(entity["arg-type"], path)

    def returns(self, command: str, path: str) -> bool:
        """Whether the command exists and its result can have the member at *path*."""
        entity = self._commands.get(command)
        return entity is not None and self._exists(entity["ret-type"], path)

    def values(self, command: str, path: str) -> frozenset[str]:
        """The words an argument accepts; empty when it is no enumeration or is not there."""
        entity = self._commands.get(command)
        return frozenset() if entity is None else self._values(entity["arg-type"], path)

    def values_returned(self, command: str, path: str) -> frozenset[str]:
        """The words a member of the result can be; empty as for `values`."""
        entity = self._commands.get(command)
        return frozenset() if entity is None else self._values(entity["ret-type"], path)

    def features(self, command: str, path: str = "") -> frozenset[str]:
        """The schema's feature flags of a command, or of its argument at *path*."""
        entity = self._commands.get(command)
        if entity is None:
            return frozenset()
        if not path:
            return frozenset(entity.get("features", ()))
        parent, _, name = path.rpartition(".")
        return frozenset(
            flag
            for holder in self._resolve(entity["arg-type"], parent)
            for member in self._types[holder].get("members", ())
            if member["name"] == name
            for flag in member.get("features", ())
        )

    def _exists(self, start: str, path: str) -> bool:
        return bool(self._resolve(start, path))

    def _resolve(self, start: str, path: str) -> set[str]:
        """The names of the types that *path* leads to."""
        found = {start}
        for name in path.split(".") if path else ():
            found = {
                member["type"]
                for holder in self._branches(found)
                for member in self._types[holder].get("members", ())
                # An enumeration has members too, but they are words without a type.
                if "type" in member and member["name"] == name
            }
        return set(self._branches(found))

    def _branches(self, names: Iterable[str]) -> Iterator[str]:
        """The types themselves, and what arrays, unions and alternates hold."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            yield name
            entity = self._types[name]
            match entity["meta-type"]:
                case "array":
                    todo.append(entity["element-type"])
                case "object":
                    todo.extend(variant["type"] for variant in entity.get("variants", ()))
                case "alternate":
                    todo.extend(member["type"] for member in entity["members"])

    def _values(self, start: str, path: str) -> frozenset[str]:
        return frozenset(
            word
            for name in self._resolve(start, path)
            if self._types[name]["meta-type"] == "enum"
            for word in self._types[name]["values"]
        )


async def fetch_schema(qmp: Session) -> Schema:
    """Ask a QEMU for its schema (`query-qmp-schema`, about 25 ms, 200 KB).

    Raises `CommandRefused` when it is too old to have one, else as `Session.execute`.
    """
    return Schema(await qmp.execute("query-qmp-schema"))
