"""When events are wanted from: after a number, from a moment on, or of an age."""

from __future__ import annotations

import re
import time
from datetime import datetime

from qmpkit.cli.exits import Refusal

__all__ = ["since_query"]

_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
_AGE = re.compile(r"(\d{1,9}(?:\.\d+)?)(s|m|min|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_FORMS = (
    "a number (4711), a time (2026-03-01T08:30, with +01:00 or Z, else local), an age (10m, 2h)"
)


def since_query(word: str | None) -> dict[str, str | int]:
    """The API's query for what `--since` says; Refusal for what is neither of the three."""
    if word is None:
        return {}
    if _NUMBER.fullmatch(word):
        return {"since": int(word)}
    if found := _AGE.fullmatch(word):
        return {"since_time": repr(time.time() - float(found[1]) * _SECONDS[found[2]])}
    try:
        return {"since_time": repr(datetime.fromisoformat(word).timestamp())}
    except (ValueError, OverflowError, OSError):  # no such day, or none that this system counts
        raise Refusal(f"--since {word}: it is {_FORMS}") from None
