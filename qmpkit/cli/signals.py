"""What stops a command: Ctrl-C, SIGTERM (of `timeout`, say), a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["as_ctrl_c", "stop_signals"]


def stop_signals() -> list[signal.Signals]:
    """What stops a command; not SIGHUP when the shell had it ignored (nohup)."""
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """KeyboardInterrupt for each of them within the block, which is no task of trio's."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal comes here
        return
    before = {number: signal.signal(number, _interrupt) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
