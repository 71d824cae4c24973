"""The commands about a farm and its machines, as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

__all__ = ["ALL", "GROUP", "Farm"]

GROUP = Group("Farms", sort_key=1)


def _machine_names(_: object) -> list[str]:
    from qmpkit.cli.naming import machine_names

    return machine_names()


def _farm_names(_: object) -> list[str]:
    from qmpkit.process.roots import known_supervisors

    return known_supervisors()


Farm = Annotated[
    str | None,
    Parameter(
        name="--farm",
        help="The farm. Default: $QMPKIT_FARM, else the only one there is.",
        completer=_farm_names,
    ),
]
FileFarm = Annotated[
    str | None,
    Parameter(
        name="--farm",
        help="The farm's name. Default: $QMPKIT_FARM, else the file's name, or for a farm.toml "
        "that of its directory.",
        completer=_farm_names,
    ),
]
Name = Annotated[str, Parameter(help="A machine.", completer=_machine_names)]
Names = Annotated[
    tuple[str, ...],
    Parameter(help="Machines; web* means all that begin so.", completer=_machine_names),
]
File = Annotated[Path, Parameter(help="The file that describes the farm: farm.toml")]
Json = Annotated[bool, Parameter(help="As JSON.")]
Grace = Annotated[
    float | None,
    Parameter(
        help="Seconds that a guest has to power down; 0 ends it at once. Default: 30.",
        validator=validators.Number(gte=0),
    ),
]


def up(
    file: File,
    /,
    *,
    farm: FileFarm = None,
    restart: Annotated[
        bool, Parameter(help="Restart machines whose changes need it; else they are told.")
    ] = False,
    grace: Grace = None,
    json: Json = False,
) -> int:
    """Have the machines of a file, and no others of the farm.

    What is missing is started, what is no longer in the file is stopped and forgotten (its
    disks stay), what has changed is changed. The machines live on when the terminal is
    closed: a daemon keeps them, which is started when none runs.
    """
    from qmpkit.cli.farm_actions import bring_up

    return bring_up(file, farm, restart=restart, grace=grace, as_json=json)


def plan(file: File, /, *, farm: FileFarm = None, json: Json = False) -> int:
    """Show what `up` would change: + added, ~ changed, ! restart needed, - removed."""
    from qmpkit.cli.farm_actions import plan as show_plan

    return show_plan(file, farm, as_json=json)


def down(
    names: Names = (),
    /,
    *,
    farm: Farm = None,
    grace: Grace = None,
    deadline: Annotated[
        float | None,
        Parameter(
            help="Seconds for all together, after which the rest is ended at once.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    delete_disks: Annotated[
        bool, Parameter(help="Remove the disks too that were made for the machines.")
    ] = False,
    json: Json = False,
) -> int:
    """Stop the farm's machines (or some), the last to start first, and forget them.

    Their disks stay, and the next `up` uses them again.
    """
    from qmpkit.cli.farm_actions import take_down

    return take_down(
        names, farm, grace=grace, deadline=deadline, delete_disks=delete_disks, as_json=json
    )


def scale(
    words: Annotated[tuple[str, ...], Parameter(help="TABLE=COUNT, as in web=3.")],
    /,
    *,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Have so many machines of a table that has a count."""
    from qmpkit.cli.farm_actions import scale as scale_to

    return scale_to(words, farm, as_json=json)


def ps(*, farm: Farm = None, json: Json = False) -> int:
    """List the machines: what they do, what they are declared to, since when and why."""
    from qmpkit.cli.farm_actions import ps as show

    return show(farm, as_json=json)


def start(names: Names, /, *, farm: Farm = None) -> int:
    """Start machines, and let paused ones run."""
    from qmpkit.cli.farm_actions import act

    return act("start", names, farm, grace=None)


def stop(names: Names, /, *, farm: Farm = None, grace: Grace = None) -> int:
    """Stop machines: each guest is asked to power down, and ended after the grace.

    It stays stopped, also after a reboot of the host, until it is started.
    """
    from qmpkit.cli.farm_actions import act

    return act("stop", names, farm, grace=grace)


def restart(names: Names, /, *, farm: Farm = None, grace: Grace = None) -> int:
    """Stop machines and start them again."""
    from qmpkit.cli.farm_actions import act

    return act("restart", names, farm, grace=grace)


def pause(names: Names, /, *, farm: Farm = None) -> int:
    """Let machines stand still."""
    from qmpkit.cli.farm_actions import act

    return act("pause", names, farm, grace=None)


def resume(names: Names, /, *, farm: Farm = None) -> int:
    """Let paused machines run."""
    from qmpkit.cli.farm_actions import act

    return act("resume", names, farm, grace=None)


def rm(
    names: Names,
    /,
    *,
    farm: Farm = None,
    force: Annotated[bool, Parameter(help="Also machines that run: they are ended.")] = False,
) -> int:
    """Forget machines that are down, with their logs; their disks stay."""
    from qmpkit.cli.farm_actions import remove

    return remove(names, farm, force=force)


def inspect(names: Names, /, *, farm: Farm = None) -> int:
    """Print all that is known of machines, as JSON."""
    from qmpkit.cli.farm_actions import inspect as show

    return show(names, farm)


def wait(
    names: Names,
    /,
    *,
    until: Annotated[
        Literal["running", "healthy", "paused", "stopped"], Parameter(name="--for")
    ] = "running",
    timeout: Annotated[
        float | None, Parameter(help="Seconds; then the exit status is 1. Default: no limit.")
    ] = None,
    farm: Farm = None,
) -> int:
    """Wait until machines are running, healthy, paused or stopped."""
    from qmpkit.cli.farm_actions import wait_for

    return wait_for(names, farm, state=until, timeout=timeout)


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

    Its output and exit status become ours; what is piped in is its stdin.

      qmpkit exec web1 -- uname -r
    """
    from qmpkit.cli.guest_actions import execute

    return execute(name, words, farm)


def cp(
    source: Annotated[str, Parameter(help="A file, or NAME:/path in a guest.")],
    target: Annotated[str, Parameter(help="A file, or NAME:/path in a guest.")],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Copy a file into a guest or out of it, by its agent; up to 64 MiB."""
    from qmpkit.cli.guest_actions import copy

    return copy(source, target, farm)


def logs(
    name: Name,
    /,
    *,
    log: Annotated[
        str | None, Parameter(help="serial0, … or stderr (QEMU's). Default: the first console.")
    ] = None,
    tail: Annotated[int | None, Parameter(help="Only the last lines.")] = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="And what comes.")] = False,
    farm: Farm = None,
) -> int:
    """Print what a machine's console said."""
    from qmpkit.cli.guest_actions import show_logs

    return show_logs(name, farm, log=log, tail=tail, follow=follow)


def events(
    *,
    machine: Annotated[
        str | None, Parameter(help="Only of this machine.", completer=_machine_names)
    ] = None,
    since: Annotated[int | None, Parameter(help="Only after this number.")] = None,
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
        Path | None, Parameter(name=("--output", "-o"), help="Default: NAME.png")
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
    """Print an Ansible inventory, as its inventory scripts do: a group for each table."""
    from qmpkit.cli.guest_actions import inventory as show

    return show(farm, host)


exec_.__name__ = "exec"
ssh_config.__name__ = "ssh-config"

ALL: tuple[Callable[..., Any], ...] = (
    up,
    plan,
    down,
    scale,
    ps,
    start,
    stop,
    restart,
    pause,
    resume,
    wait,
    inspect,
    rm,
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
