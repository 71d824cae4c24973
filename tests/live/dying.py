"""A program that is killed at one of its steps, or the QEMU that it keeps, or both."""

from __future__ import annotations

import signal
import sys

import trio

__all__ = ["STEPS", "dies"]

STEPS = """
import os, pkgutil, signal, sys, qmpkit, trio

*words, last, victims = sys.argv[1:]
last, count, armed, qemu, died = int(last), 0, False, 0, False

def die():
    global died
    died = True
    if victims in ("both", "qemu"):
        os.kill(qemu, signal.SIGKILL)
    if victims != "qemu":
        os.kill(os.getpid(), signal.SIGKILL)

def step(place, name):
    owner = pkgutil.resolve_name(place)
    real = getattr(owner, name)
    async def counted(*args, **kwargs):
        global count
        count += armed
        if armed and count >= 2 * last and not died:
            die()
        result = await real(*args, **kwargs)
        if armed and count >= 2 * last - 1 and not died:
            die()
        count += armed
        return result
    setattr(owner, name, counted)
"""
"""Its beginning: `words` are its own arguments, `step` names a function that is a step.

The last two arguments are at which step it dies, and who: "both", "supervisor" or "qemu".
Steps are counted once `armed` is true, and `qemu` is the other victim.
"""


async def dies(program: str, *words: str, last: int, victims: str = "supervisor") -> bool:
    """Whether a program of `STEPS` dies at its step, rather than be done before that comes."""
    argv = [sys.executable, "-c", program, *words, str(last), victims]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
