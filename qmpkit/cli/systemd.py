"""`qmpkit systemd`: the unit that runs a farm's daemon."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path

from qmpkit.cli.exits import Exit
from qmpkit.cli.talk import talk

__all__ = ["print_unit", "unit_of"]

_UNIT = """\
# KillMode=process: the machines are not the daemon's to take along; it adopts them again.
[Unit]
Description=qmpkit farm {farm}
After=network.target

[Service]
Type=notify
ExecStart={command}
KillMode=process
Restart=on-failure
{own}
[Install]
WantedBy={target}
"""


def unit_of(farm: str, command: str, group: str | None, *, user: bool) -> str:
    """The text of the unit."""
    words = f"{command} serve --farm {farm}" + ("" if group is None else f" --group {group}")
    own = "" if user else "# Guests go on when it is stopped: `qmpkit down` ends them.\n"
    target = "default.target" if user else "multi-user.target"
    return _UNIT.format(farm=farm, command=words, own=own, target=target)


def print_unit(farm: str, group: str | None, *, user: bool) -> int:
    """Print the unit, and say what it needs that is not here."""
    command = shutil.which("qmpkit") or f"{sys.executable} -m qmpkit.cli"
    sys.stdout.write(unit_of(farm, command, group, user=user))
    name = pwd.getpwuid(os.geteuid()).pw_name
    if user and not Path("/var/lib/systemd/linger", name).exists():
        talk.warn(
            f"without lingering everything of {name} ends with the last login. "
            f"Cure: loginctl enable-linger {name}"
        )
    return Exit.OK
