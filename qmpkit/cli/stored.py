"""An image of the store by its name, where a file is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from qmpkit import images

__all__ = ["stored"]


async def stored(base: Path) -> Path:
    """The store's image that is called so, where there is no such file; else *base*."""
    if base.name != str(base) or await trio.to_thread.run_sync(os.path.lexists, base):
        return base
    for image in await images.Store().images():
        if base.name in image.names:
            return image.path
    return base
