"""A program that is killed at one of its steps, or the QEMU that it keeps, or both."""

from __future__ import annotations

__all__ = ["STEPS"]

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
