"""The commands about a farm and what its machines are to do, as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Json, Names, farm_names

__all__ = ["ALL"]

FileFarm = Annotated[
    str | None,
    Parameter(
        name="--farm",
        help="The farm's name. Default: $QMPKIT_FARM, else the file's name, or for a farm.toml "
        "that of its directory.",
        completer=farm_names,
    ),
]
File = Annotated[Path, Parameter(help="The file that describes the farm: farm.toml")]
Grace = Annotated[
    float | None,
    Parameter(
        help="Seconds that a guest has to power down; 0 ends it at once. Default: 30.",
        validator=validators.Number(gte=0),
    ),
]
Yes = Annotated[
    bool, Parameter(name=("--yes", "-y"), help="Do not ask; needed where nobody can be asked.")
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
        bool,
        Parameter(help="Remove the disks too that were made for the machines; asks before."),
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Stop the farm's machines (or some), the last to start first, and forget them.

    Their disks stay, and the next `up` uses them again. What one was saved with is discarded,
    which is asked about before.
    """
    from qmpkit.cli.farm_actions import take_down

    return take_down(
        names,
        farm,
        grace=grace,
        deadline=deadline,
        delete_disks=delete_disks,
        yes=yes,
        as_json=json,
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
    yes: Yes = False,
) -> int:
    """Forget machines that are down, with their logs; their disks stay.

    What one was saved with is discarded, which is asked about before.
    """
    from qmpkit.cli.farm_actions import remove

    return remove(names, farm, force=force, yes=yes)


def inspect(names: Names, /, *, farm: Farm = None) -> int:
    """Print all that is known of machines, as JSON."""
    from qmpkit.cli.farm_actions import inspect as show

    return show(names, farm)


def wait(
    names: Names,
    /,
    *,
    until: Annotated[
        Literal["running", "healthy", "paused", "stopped", "gone"], Parameter(name="--for")
    ] = "running",
    timeout: Annotated[
        float | None,
        Parameter(
            help="Seconds; then the exit status is 1. Default: no limit.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    farm: Farm = None,
) -> int:
    """Wait until machines are running, healthy, paused, stopped, or gone: declared no longer."""
    from qmpkit.cli.farm_actions import wait_for

    return wait_for(names, farm, state=until, timeout=timeout)


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
)
