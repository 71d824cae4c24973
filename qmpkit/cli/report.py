"""How every command leaves: its exit status, and each error as a sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from qmpkit.cli.exits import Exit, Refusal, exit_of
from qmpkit.cli.safe import one_line
from qmpkit.cli.streams import StdoutFailed
from qmpkit.cli.talk import talk
from qmpkit.errors import Fault, LaunchFailed, SpecInvalid

__all__ = ["debug_wanted", "reported"]


def debug_wanted() -> bool:
    """Whether the environment asks for what `--debug` does."""
    return os.environ.get("QMPKIT_DEBUG", "0") not in ("", "0")


def reported(command: Callable[[], Any]) -> int:
    """Run a command; returns the exit status and never raises an Exception."""
    try:
        status = command()
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        # Not one name more for it here: its traceback holds this frame, and they would keep
        # each other, with the connections in it, until Python looks for cycles.
        return _told(error)
    return status if isinstance(status, int) else Exit.OK


def _told(error: BaseException) -> int:
    leaves = _leaves(error)
    # In a group, too: what prints in a task is cancelled with its siblings.
    if any(isinstance(leaf, BrokenPipeError | StdoutFailed) for leaf in leaves):
        _drop_output()
    if all(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        return Exit.UNREAD
    return _report(error)


def _drop_output() -> None:
    """Python would complain once more, of what is left, when it flushes stdout at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: BaseException) -> int:
    status = exit_of(error)
    if status is None or talk.debug:
        talk.trace("".join(traceback.format_exception(error)).rstrip())
    if status is None:
        talk.error("this is a bug in qmpkit, please report it with the lines above")
        return Exit.FAILED
    for leaf in _leaves(error):
        talk.error("interrupted" if isinstance(leaf, KeyboardInterrupt) else _sentence(leaf))
    return status


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _sentence(error: BaseException) -> str:
    if isinstance(error, StdoutFailed):
        return f"the output cannot be written: {error.strerror}"
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, LaunchFailed) and not talk.debug:
        return f"{error.brief}\n(`--debug` shows QEMU's command.)"
    if isinstance(error, SpecInvalid):  # its lines are its faults, and no name may add one
        return str(
            SpecInvalid([_one_line(fault) for fault in error.faults], one_line(error.source))
        )
    return one_line(error) if isinstance(error, Refusal) else str(error)


def _one_line(fault: Fault) -> Fault:
    return Fault(one_line(fault.path), one_line(fault.message), one_line(fault.hint))
