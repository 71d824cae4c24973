"""What the classes of a spec say of their fields."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["hints_of"]


@cache
def hints_of(kind: Any) -> Mapping[str, Any]:
    """The types of a class's fields by their names; found once, for that is slow."""
    return typing.get_type_hints(kind)
