"""Asking before something is lost for good."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from qmpkit.cli.exits import Refusal
from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import talk

__all__ = ["confirmed"]


def confirmed(what: str, losses: Iterable[str]) -> bool:
    """Whether the person at the terminal wants *what*, having read what is lost by it.

    Raises Refusal where nobody can be asked.
    """
    listed = list(losses)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        lost = f": {', '.join(listed)}" if listed else ""
        raise Refusal(f"{what} wants to be confirmed{lost}. Cure: --yes, when that is meant")
    for loss in listed:
        talk.say(f"  {loss}")
    print(one_line(f"{what}? [y/N] "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
