"""Where directories are by the rules, nothing made or claimed; loads nothing heavy."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

__all__ = [
    "DECLARED",
    "HASH",
    "JOURNAL",
    "OWNER",
    "hash_of",
    "images_root",
    "known_supervisors",
    "root_by_rule",
]
__all__ += ["runtime_of", "state_root", "templates_root"]

HASH = 12
"""Characters of a name that stands for one that would be too long."""

JOURNAL = "machines/journal"
"""In a state directory: what is known of each machine, an entry of `entries` each."""

DECLARED = "farm.json"
"""In a state directory: the farm as it was declared last; none once it was taken down."""

OWNER = ".state"
"""A runtime directory's link to its state directory; no machine's name begins with a dot."""


def root_by_rule() -> Path:
    """Where the root is by the rules above, not looked at."""
    if own := os.environ.get("QMPKIT_RUNTIME_DIR"):
        return Path(own).absolute()
    uid = os.geteuid()
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    # Root's own ends with its last login, and a service of root's has none.
    session = uid == 0 and xdg.startswith("/run/user/")
    # Under sudo the variable may still name the directory of another user.
    with suppress(OSError):
        if xdg.startswith("/") and not session and Path(xdg).stat().st_uid == uid:
            return Path(xdg) / "qmpkit"
    return Path("/run/qmpkit") if uid == 0 else Path(f"/tmp/qmpkit-{uid}")


def known_supervisors() -> list[str]:
    """The names of those that have a state directory.  Blocking."""
    with suppress(OSError):
        return sorted(path.parent.name for path in state_root().glob("*/machines"))
    return []


def runtime_of(name: str) -> Path | None:
    """The runtime directory of the supervisor *name*, without making or claiming anything.

    None when it has none at the moment.  Blocking: some system calls.
    """
    state, root = state_root() / name, root_by_rule()
    short = Path("/run/qmpkit") if os.geteuid() == 0 else Path(f"/tmp/qmpkit-{os.geteuid()}")
    hashed = f"k.{hash_of(str(state))}"
    for directory in (root / name, root / hashed, short / hashed):
        with suppress(OSError):
            if (directory / OWNER).readlink() == state:
                return directory
    return None


def state_root() -> Path:
    """What the state directories of all supervisors are in; not made."""
    if own := os.environ.get("QMPKIT_STATE_DIR"):
        return Path(own).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/qmpkit")
    xdg = os.environ.get("XDG_STATE_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".local" / "state") / "qmpkit"


def images_root() -> Path:
    """Where the image store is: `$QMPKIT_IMAGES_DIR`, else `.images` in `state_root`; not made."""
    if own := os.environ.get("QMPKIT_IMAGES_DIR"):
        return Path(own).absolute()
    return state_root() / ".images"  # no supervisor's name begins with a dot


def templates_root() -> Path:
    """Where templates are that are called by a name: `.templates` in `state_root`; not made."""
    return state_root() / ".templates"  # no supervisor's name begins with a dot


def hash_of(text: str) -> str:
    """A short name for what would be too long."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:HASH]
