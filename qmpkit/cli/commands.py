"""The commands as the shell sees them: words, options, help.

What they do lies in modules that are imported when a command runs, so that
`qmpkit --help` and completion load neither trio nor the library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

__all__ = ["ALL"]


def _profile_names(_: object) -> list[str]:
    from qmpkit.spec.profile import profile_names

    return list(profile_names())


Profile = Annotated[
    str,
    Parameter(
        help="A shipped profile's name (see `qmpkit profiles`), or a file: ./web.toml",
        completer=_profile_names,
    ),
]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Change the profile: memory=2GiB, kernel.append=quiet, disks[0].cache=none. "
        "The value is JSON when it can be, else text; null takes the key out. Repeatable.",
        allow_leading_hyphen=True,
        consume_multiple=False,
    ),
]


def profiles(
    *, json: Annotated[bool, Parameter(help="A JSON list; memory in bytes.")] = False
) -> None:
    """List the shipped profiles."""
    from qmpkit.cli.listing import list_profiles

    list_profiles(as_json=json)


async def argv(
    profile: Profile,
    /,
    *,
    set: Overrides = (),
    paused: Annotated[bool, Parameter(help="With -S: the guest waits for `cont`.")] = False,
    sockets: Annotated[
        Path, Parameter(help="Directory of the sockets in the command. Default: this one.")
    ] = Path(),
    json: Annotated[bool, Parameter(help="The words as a JSON list.")] = False,
) -> None:
    """Print QEMU's command line for a profile.

    It can be read, and pasted into a shell. It is what `run` would start on this host,
    with sockets to connect to where `run` uses inherited ones. Nothing is created.
    """
    from qmpkit.cli.listing import print_argv

    await print_argv(profile, set, paused=paused, sockets=sockets, as_json=json)


async def run(
    profile: Profile,
    /,
    *,
    headless: Annotated[
        bool, Parameter(help="Show a status line instead of the guest's console.")
    ] = False,
    set: Overrides = (),
    paused: Annotated[
        bool, Parameter(help="Leave the guest before its first instruction.")
    ] = False,
    powerdown_grace: Annotated[
        float,
        Parameter(
            help="Seconds the guest has to power down when stopped; 0 ends it at once. "
            "Default: 30.",
            validator=validators.Number(gte=0),
        ),
    ] = 30.0,
    logs: Annotated[
        Path | None, Parameter(help="Directory for logs of the consoles and of QEMU's stderr.")
    ] = None,
    tools_socket: Annotated[
        Path | None,
        Parameter(
            help="Where to make the monitor for other programs. Default: in the runtime directory."
        ),
    ] = None,
    json: Annotated[
        bool, Parameter(help="Print the exit report as JSON; implies --headless.")
    ] = False,
) -> int:
    """Run a machine in the foreground until it ends.

    The terminal becomes the guest's first serial console. Ctrl-] leaves it while the
    machine runs on; Enter then returns to it.

    Ctrl-C (while the console does not have the terminal), SIGTERM or a closed terminal
    stop the machine in order: the guest is asked to power down and QEMU is ended when
    it has not within the grace. A second Ctrl-C ends QEMU at once, a third kills it.
    """
    from qmpkit.cli.foreground import Request, run_machine

    return await run_machine(
        Request(
            profile=profile,
            overrides=set,
            headless=headless or json,
            paused=paused,
            grace=powerdown_grace,
            logs=logs,
            tools_socket=tools_socket,
            as_json=json,
        )
    )


async def qmp(
    socket: Annotated[Path, Parameter(help="Path of a QMP monitor's unix socket.")],
    command: Annotated[str | None, Parameter(help="For example query-status.")] = None,
    /,
    *arguments: Annotated[
        str,
        Parameter(
            help="Arguments as key=value (keys may nest: a.b=1), or a JSON object. A value is "
            "JSON when it can be, else text."
        ),
    ],
    second: Annotated[
        Path | None, Parameter(help="The same QEMU's second monitor, for when SOCKET is held.")
    ] = None,
    events: Annotated[
        bool, Parameter(help="Then follow the events, a JSON object a line, until Ctrl-C.")
    ] = False,
    json: Annotated[bool, Parameter(help="The reply as JSON on one line.")] = False,
) -> int:
    """Send one QMP command to a QEMU that is already running.

    Prints what QEMU returned. A text (as of human-monitor-command) is printed as it is
    unless --json is given.

      qmpkit qmp vm.sock query-status
      qmpkit qmp vm.sock device_del id=disk1
      qmpkit qmp vm.sock human-monitor-command command-line='info pci'
    """
    from qmpkit.cli.query import ask

    return await ask(socket, command, arguments, second=second, events=events, as_json=json)


ALL: tuple[Callable[..., Any], ...] = (run, profiles, argv, qmp)
