"""Reading what a client sends: never more than fits, never for longer than is decent."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.server.answers import Refused
from qmpkit.spec.convert import kind_of
from qmpkit.spec.suggest import unknown_key

__all__ = ["BODY_LIMIT", "PATIENCE", "Keys", "read_body", "read_object", "whole_number"]

BODY_LIMIT = 1 << 20

_DRAINED = 4  # a body that is too long is read on for a while: else its sender hears nothing

PATIENCE = 30.0
"""Seconds in which a body has to be here."""

Keys = Mapping[str, type | tuple[type, ...]]
"""What an object may have, each with what it can be."""


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The whole body; raises Refused for one of more than *limit* bytes, or that dawdles."""
    parts, size = [], 0
    try:
        with trio.fail_after(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > limit * _DRAINED:
                    break
    except trio.TooSlowError:
        raise Refused(f"the body was not here within {PATIENCE:g} s", 408) from None
    except ClientDisconnect:
        raise Refused("the client has gone", 400) from None
    if size > limit:
        raise Refused(f"the body has more than {limit} bytes", 413)
    return b"".join(parts)


async def read_object(
    request: Request, keys: Keys | None, *, limit: int = BODY_LIMIT
) -> dict[str, Any]:
    """A JSON object with some of *keys* and no others, of their types; an empty body is {}.

    Without *keys* it has any: which they may be is then the caller's to say.

    Raises SpecInvalid with all that is wrong.
    """
    raw = await read_body(request, limit)
    try:
        found = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"the body must be an object, not {kind_of(found)}")
    if keys is None:
        return found
    faults = [unknown_key(key, key, keys) for key in found if key not in keys]
    faults += [
        Fault(key, problem)
        for key, kind in keys.items()
        if key in found and (problem := _problem(found[key], kind))
    ]
    if faults:
        raise SpecInvalid(faults, "the request")
    return found


def _problem(value: object, kind: type | tuple[type, ...]) -> str:
    """Why a value is none of a kind; empty when it is one."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"cannot be {kind_of(value)}"
    # JSON in Python lets NaN and Infinity through.
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        return f"must be 0 or more, not {value}"
    # Compared exactly: one of 400 digits is finite, and no float.
    if isinstance(value, int) and value > sys.float_info.max:
        return "is too large"
    return ""


def whole_number(request: Request, key: str) -> int | None:
    """A number of the query; None when it is not there."""
    value = request.query_params.get(key)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise Refused(f"{key} must be a whole number, not {value!r}") from None
