"""The commands that go into a farm's guests, and those that tell of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Machine, Name, Names

__all__ = ["ALL"]


async def console(
    name: Name,
    /,
    *,
    serial: Annotated[str | None, Parameter(help="Which console. Default: the first.")] = None,
    farm: Farm = None,
) -> int:
    """Use a machine's serial console; Ctrl-] leaves it."""
    from qmpkit.cli.farm_console import use_console

    return await use_console(name, serial, farm)


def exec_(
    name: Name,
    words: Annotated[
        tuple[str, ...], Parameter(help="The program and its words.", allow_leading_hyphen=True)
    ],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Run a program in a guest, by its agent: no shell, no network.

    Its output and exit status become ours; what is piped in is its stdin.  It is killed when
    this command ends before it, by Ctrl-C say, and after an hour.

      qmpkit exec web1 -- uname -r
    """
    from qmpkit.cli.guest_exec import execute

    return execute(name, words, farm)


def cp(
    source: Annotated[
        str,
        Parameter(help="A file, NAME:/path in a guest, or - for stdin.", allow_leading_hyphen=True),
    ],
    target: Annotated[
        str,
        Parameter(
            help="A file, NAME:/path in a guest, or - for stdout.", allow_leading_hyphen=True
        ),
    ],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Copy a file of any length into a guest or out of it, by its agent.

    A file here appears when it is whole; one in the guest may be there in part when the
    copy breaks off.
    """
    from qmpkit.cli.guest_copy import copy

    return copy(source, target, farm)


def logs(
    name: Name,
    /,
    *,
    log: Annotated[
        str | None, Parameter(help="serial0, … or stderr (QEMU's). Default: the first console.")
    ] = None,
    tail: Annotated[
        int | None, Parameter(help="Only the last lines.", validator=validators.Number(gte=0))
    ] = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="And what comes.")] = False,
    farm: Farm = None,
) -> int:
    """Print what a machine's console said."""
    from qmpkit.cli.guest_actions import show_logs

    return show_logs(name, farm, log=log, tail=tail, follow=follow)


def events(
    *,
    machine: Machine = None,
    since: Annotated[
        str | None,
        Parameter(
            help="Only after a number, from a time on (2026-03-01T08:30, local or with a zone), or "
            "not older than an age (10m, 2h, 1d).",
            allow_leading_hyphen=True,
        ),
    ] = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="And what comes.")] = False,
    json: Annotated[bool, Parameter(help="A JSON object a line.")] = False,
    farm: Farm = None,
) -> int:
    """Print what has happened to the machines, also before the daemon's last restart.

    With --follow what happens from now on; with --since too, first what has since then.
    """
    from qmpkit.cli.guest_actions import show_events

    return show_events(farm, machine=machine, since=since, follow=follow, as_json=json)


def screenshot(
    name: Name,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=("--output", "-o"),
            help="A file, a directory, or - for stdout. Default: NAME.png",
            allow_leading_hyphen=True,
        ),
    ] = None,
    farm: Farm = None,
) -> int:
    """Save a guest's screen as PNG."""
    from qmpkit.cli.guest_actions import take_screenshot

    return take_screenshot(name, farm, output)


def ssh(
    name: Name,
    words: Annotated[
        tuple[str, ...],
        Parameter(help="What ssh gets: a command, options.", allow_leading_hyphen=True),
    ] = (),
    /,
    *,
    user: Annotated[
        str | None, Parameter(help="Default: the first that its cloud-init makes.")
    ] = None,
    farm: Farm = None,
) -> int:
    """Log in to a machine by the system's ssh, through the port that leads to its 22.

    qmpkit ssh web1 -- uname -a
    """
    from qmpkit.cli.guest_actions import ssh as become_ssh

    return become_ssh(name, words, farm, user)


def ssh_config(names: Names = (), /, *, farm: Farm = None) -> int:
    """Print a fragment for ~/.ssh/config, so that `ssh web1` works."""
    from qmpkit.cli.guest_actions import ssh_config as show

    return show(names, farm)


def inventory(
    *,
    host: Annotated[str | None, Parameter(help="The variables of one machine.")] = None,
    list_: Annotated[bool, Parameter(name="--list", help="All; what is done anyway.")] = False,
    farm: Farm = None,
) -> int:
    """Print an Ansible inventory, as its inventory scripts do: a group for each table.

    Machines to which no way leads are left out, and named on stderr with what would help.
    """
    from qmpkit.cli.guest_actions import inventory as show

    return show(farm, host)


exec_.__name__ = "exec"
ssh_config.__name__ = "ssh-config"

ALL: tuple[Callable[..., Any], ...] = (
    console,
    exec_,
    cp,
    ssh,
    ssh_config,
    inventory,
    logs,
    events,
    screenshot,
)
