"""Whether what a user starts lives on when the user logs out, where systemd decides that."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from qmpkit.process.roots import root_by_rule

__all__ = ["linger_problem", "session_problem"]

_LOGIND = Path("/run/systemd/users")
_LINGER = Path("/var/lib/systemd/linger")
_SESSIONS = Path("/run/user")


def linger_problem() -> str:
    """Why the user's own systemd would not run without a login, with the cure; empty: it would."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""
    if (_LINGER / name).exists():
        return ""
    what = f"without lingering all that {name} runs ends, or loses its sockets, at the last logout"
    return f"{what}. Cure: loginctl enable-linger {name}"


def session_problem() -> str:
    """Why a farm that is started now would not outlive this login; empty when it would."""
    in_session = _SESSIONS in root_by_rule().parents
    return linger_problem() if in_session and _LOGIND.exists() else ""
