"""What stands in a start's way, collected so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from qmpkit.errors import Fault, HostLacks, ImageInUse, SpecInvalid

__all__ = ["Problem", "lacking", "raise_problems"]


@attrs.frozen
class Problem:
    """A fault, and the error it is when it stands alone (None: `SpecInvalid`)."""

    fault: Fault
    alone: HostLacks | ImageInUse | None = None


def lacking(path: str, error: HostLacks) -> Problem:
    """The host's fault, as one line of a list or as *error*."""
    return Problem(Fault(path, error.what, error.cure), error)


def raise_problems(problems: Sequence[Problem], source: str) -> None:
    """Raise what was found: one problem as its own error, several as one `SpecInvalid`."""
    if len(problems) == 1 and problems[0].alone is not None:
        problems[0].alone.source = source
        raise problems[0].alone
    if problems:
        raise SpecInvalid([problem.fault for problem in problems], source)
