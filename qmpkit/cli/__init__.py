"""The `qmpkit` command: parses, calls the library, prints.

`main` is light on purpose: it must be able to say that the extra is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from qmpkit.cli.streams import provide_streams

__all__ = ["main"]

_EXTRA = ("attrs", "cyclopts", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (default: this process's) and return its exit status."""
    provide_streams()
    try:
        run = _runner(sys.argv[1:] if argv is None else argv)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(
            f"error: the qmpkit command needs {missing.name}, which is not installed. "
            "Cure: pip install 'qmpkit[cli]'",
            file=sys.stderr,
        )
        return 3
    return run()


def _runner(words: Sequence[str]) -> Callable[[], int]:
    """What runs a command line, with everything loaded that it takes to read it."""
    from qmpkit.cli.plain import plain

    if (runner := plain(words)) is not None:
        return runner
    from qmpkit.cli.app import run

    return partial(run, words)
