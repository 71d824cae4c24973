"""Where qmpkit keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """`$QMPKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/qmpkit`, else `~/.cache/qmpkit`; not created."""
    if own := os.environ.get("QMPKIT_CACHE_DIR"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "qmpkit"
    return Path.home() / ".cache" / "qmpkit"
