"""A program that is killed at one of its steps, alone or with the QEMU that it keeps."""

from __future__ import annotations

__all__ = ["STEPS"]

STEPS = """
import os, pkgutil, signal, sys, qmpkit, trio

*words, last, victims = sys.argv[1:]
last, count, armed, qemu = int(last), 0, False, 0

def die():
    if victims == "both":
        os.kill(qemu, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def step(place, name):
    owner = pkgutil.resolve_name(place)
    real = getattr(owner, name)
    async def counted(*args, **kwargs):
        global count
        count += armed
        if armed and count == 2 * last:
            die()
        result = await real(*args, **kwargs)
        if armed and count == 2 * last - 1:
            die()
        count += armed
        return result
    setattr(owner, name, counted)
"""
"""Its beginning: `words` are its own arguments, `step` names a function that is a step.

The last two arguments are at which step it dies, and who: "both" or "supervisor".  Steps are
counted once `armed` is true, and `qemu` is the other victim.
"""
