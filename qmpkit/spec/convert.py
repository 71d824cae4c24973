"""Plain dicts to a `MachineSpec` and back, with every fault at its path.

cattrs walks the types. It coerces by default ("5" to 5, True to 1, a string to a
tuple of letters), so every scalar has a strict hook here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.block import Overlay
from qmpkit.spec.chardev import Serial, to_serials
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.encryption import Luks
from qmpkit.spec.firmware import UEFI, Firmware, Uefi
from qmpkit.spec.health import CHECK_KINDS, Check, FunctionCheck, to_checks
from qmpkit.spec.machine import MachineSpec, Option
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import NIC_KINDS, Forward, Nic, to_forward
from qmpkit.spec.peripherals import DEVICE_KINDS, Device
from qmpkit.spec.resources import Pin
from qmpkit.spec.sizes import Size, format_size, parse_size
from qmpkit.spec.suggest import suggestion

__all__ = [
    "Wrong",
    "kind_of",
    "structure",
    "structure_as",
    "unfolded",
    "unstructure",
    "unstructure_any",
]

_T = TypeVar("_T")

_MAKE = Size | Overlay | None


class Wrong(ValueError):
    """A value that does not fit, in words for its author."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message, hint)


def kind_of(value: object) -> str:
    """What a TOML or JSON author calls it."""
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number with a fraction",
        str: "a text",
        list: "a list",
        tuple: "a list",
        dict: "a table",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _scalar(wanted: type, called: str) -> Callable[[object, object], object]:
    def hook(value: object, _: object) -> object:
        if type(value) is not wanted:
            raise Wrong(f"must be {called}, not {_shown(value)}")
        return value

    return hook


def _shown(value: object) -> str:
    called = kind_of(value)
    return f"{called}: {value!r}" if isinstance(value, str | int | float) else called


def _seconds(value: object, _: object) -> float:
    """A float of ours is a time or a ratio, which people also write as a whole number."""
    if type(value) not in (int, float):
        raise Wrong(f"must be a number, not {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def _literal(value: object, wanted: Any) -> object:
    choices = get_args(wanted)
    if value not in choices or type(value) is not str:
        listed = ", ".join(repr(choice) for choice in choices)
        raise Wrong(f"must be one of {listed}, not {value!r}", suggestion(value, choices))
    return value


def _size(value: object, _: object) -> Size:
    if not isinstance(value, str | int):
        raise Wrong(f'must be a size ("10GiB"), not {_shown(value)}')
    try:
        return parse_size(value)
    except ValueError as error:
        raise Wrong(str(error)) from None


def _option(value: object, _: object) -> Option:
    if not isinstance(value, str | int):
        raise Wrong(f"must be a text, a number or true or false, not {_shown(value)}")
    return value


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise Wrong(f"must be a table, not {_shown(value)}")
    return value


def _items(value: Iterable[tuple[Any, object]], inner: Any, title: str) -> list[object]:
    """Structure every item; what fails is collected under its key, as cattrs does."""
    hook = _CONVERTER.get_structure_hook(inner)
    done: list[object] = []
    errors: list[Exception] = []
    for key, item in value:
        try:
            done.append(hook(item, inner))
        except Exception as error:
            _note(error, cattrs.IterableValidationNote(f"{title} @ {key!r}", key, inner))
            errors.append(error)
    if errors:
        raise cattrs.IterableValidationError(title, errors, list)
    return done


def _note(error: Exception, note: str) -> None:
    error.__notes__ = [*getattr(error, "__notes__", []), note]


def _row(value: object, kind: Any) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise Wrong(f"must be a list, not {_shown(value)}")
    return tuple(_items(enumerate(value), get_args(kind)[0], "list"))


def _dict(value: object, kind: Any) -> dict[str, object]:
    table = _table(value)
    return dict(zip(table, _items(table.items(), get_args(kind)[1], "table"), strict=True))


def _tagged(value: object, kinds: Mapping[str, Any]) -> object:
    """The table's `kind` names the class, the other keys are its fields."""
    table = dict(_table(value))
    name = _at_key("kind", lambda: _kind(table, kinds))
    return _CONVERTER.structure(table, kinds[str(name)])


def _kind(table: dict[str, object], kinds: Mapping[str, Any]) -> object:
    if "kind" not in table:
        raise Wrong("is missing", f"one of {', '.join(map(repr, kinds))}")
    return _literal(table.pop("kind"), Literal[tuple(kinds)])


def _nic(value: object, _: object) -> object:
    return _tagged(value, NIC_KINDS)


def _device(value: object, _: object) -> object:
    return _tagged(value, DEVICE_KINDS)


def _check(value: object, _: object) -> object:
    if not isinstance(value, str):
        return _tagged(value, CHECK_KINDS)
    try:
        return to_checks(value)[0]
    except SpecInvalid as error:
        (fault,) = error.faults
        raise Wrong(fault.message, fault.hint) from None


def _at_key(key: str, work: Callable[[], object]) -> object:
    try:
        return work()
    except Wrong as error:
        _note(error, cattrs.AttributeValidationNote(f"table @ {key}", key, str))
        raise cattrs.ClassValidationError("table", [error], dict) from None


def _made(value: object, _: object) -> Size | Overlay | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        made: Overlay = _CONVERTER.structure(value, Overlay)
        return made
    return _size(value, None)


def _serials(value: object, kind: Any) -> object:
    if type(value) is int:
        if value < 0:
            raise Wrong(f"cannot be negative, this is {value}")
        return to_serials(value)
    return _row(value, kind)


def _pin(value: object, _: object) -> object:
    if value is None or isinstance(value, str):
        return value
    return _row(value, tuple[str, ...])


def _firmware(value: object, _: object) -> Firmware:
    if value is None or (isinstance(value, str) and value != UEFI):
        return value
    if not isinstance(value, str | Mapping):
        raise Wrong(f'must be "{UEFI}", a BIOS file or a table, not {_shown(value)}')
    made: Uefi = _CONVERTER.structure(value, Uefi)
    return made


def _forward(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        forward = to_forward(value)
    except ValueError as error:
        raise Wrong(str(error), '"2222:22"') from None
    return {"host": forward.host, "guest": forward.guest}


_SHORTHAND: dict[type, Callable[[object], object]] = {
    Cpu: lambda value: {"cpus": value} if type(value) is int else value,
    Memory: lambda value: {"size": value} if isinstance(value, str | int | float) else value,
    Serial: lambda value: {"name": value} if isinstance(value, str) else value,
    Forward: _forward,
    Luks: lambda value: {"key_file": value} if isinstance(value, str) else value,
    Uefi: lambda value: {} if value == UEFI else value,
}


def unfolded(data: Mapping[str, object]) -> dict[str, object]:
    """`data` with `memory = "1GiB"` and its like as tables, which others can be merged with."""
    whole = dict(data)
    for key, kind in (("memory", Memory), ("cpu", Cpu), ("firmware", Uefi)):
        if key in whole:
            whole[key] = _SHORTHAND[kind](whole[key])
    return whole


def _class_hook(kind: Any) -> Callable[[object, object], object]:
    """A class from a table, or from what people write instead of one."""
    fields: Any = make_dict_structure_fn(
        kind, _CONVERTER, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True
    )
    unfold = _SHORTHAND.get(kind)

    def hook(value: object, _: object) -> object:
        return fields(_table(unfold(value) if unfold else value), kind)

    return hook


def _origin_is(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: typing.get_origin(kind) is origin


def _readers(converter: cattrs.Converter) -> None:
    for wanted, called in ((str, "a text"), (int, "a whole number"), (bool, "true or false")):
        converter.register_structure_hook(wanted, _scalar(wanted, called))
    converter.register_structure_hook(float, _seconds)
    converter.register_structure_hook_func(_origin_is(Literal), _literal)
    converter.register_structure_hook_func(_origin_is(tuple), _row)
    converter.register_structure_hook_func(_origin_is(dict), _dict)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_structure_hook_func(lambda kind: kind is Size, _size)
    converter.register_structure_hook_func(lambda kind: kind == Option, _option)
    converter.register_structure_hook_func(lambda kind: kind == Nic, _nic)
    converter.register_structure_hook_func(lambda kind: kind == Device, _device)
    converter.register_structure_hook_func(lambda kind: kind == Check, _check)
    converter.register_structure_hook_func(lambda kind: kind == _MAKE, _made)
    converter.register_structure_hook_func(lambda kind: kind == tuple[Serial, ...], _serials)
    converter.register_structure_hook_func(lambda kind: kind == Firmware, _firmware)
    converter.register_structure_hook_func(lambda kind: kind == Pin, _pin)


def _writers(converter: cattrs.Converter) -> None:
    def nic(value: Nic) -> dict[str, object]:
        kind = next(name for name, cls in NIC_KINDS.items() if cls is type(value))
        return {"kind": kind, **converter.unstructure(value)}

    def device(value: Device) -> dict[str, object]:
        kind = next(name for name, cls in DEVICE_KINDS.items() if cls is type(value))
        return {"kind": kind, **converter.unstructure(value)}

    def check(value: Check) -> dict[str, object]:
        if isinstance(value, FunctionCheck):
            message = f"{str(value)!r} is a function, which is nothing that can be written"
            raise SpecInvalid([Fault("health.checks", message)])
        return {"kind": value.kind, **converter.unstructure(value)}

    def made(value: Size | Overlay | None) -> object:
        return format_size(value) if isinstance(value, int) else converter.unstructure(value)

    converter.register_unstructure_hook_func(lambda kind: kind is Size, format_size)
    converter.register_unstructure_hook_func(lambda kind: kind == Nic, nic)
    converter.register_unstructure_hook_func(lambda kind: kind == Device, device)
    converter.register_unstructure_hook_func(lambda kind: kind == Check, check)
    converter.register_unstructure_hook_func(lambda kind: kind == _MAKE, made)


_CONVERTER = cattrs.Converter(detailed_validation=True)
_readers(_CONVERTER)
_writers(_CONVERTER)


def structure(data: Mapping[str, object]) -> MachineSpec:
    """A spec from its table; raises cattrs' grouped errors (see `faults.collect`)."""
    return _CONVERTER.structure(data, MachineSpec)


def structure_as(data: object, kind: type[_T]) -> _T:
    """`structure` for any other of our classes: as strict, with the same errors."""
    return _CONVERTER.structure(data, kind)


def unstructure_any(value: object) -> Any:
    """A value of any other of our classes as plain data, None included."""
    return _CONVERTER.unstructure(value)


def unstructure(spec: MachineSpec) -> dict[str, Any]:
    """Every field as plain data, None included."""
    full: dict[str, Any] = _CONVERTER.unstructure(spec)
    return full
