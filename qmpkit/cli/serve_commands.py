"""The commands that run a farm's daemon, as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from qmpkit.cli.farm_words import Farm

__all__ = ["ALL"]

Shared = Annotated[
    str | None,
    Parameter(name="--group", help="A group whose members may use it too. Default: nobody else."),
]


async def serve(
    *,
    farm: Farm = None,
    group: Shared = None,
    detach: Annotated[bool, Parameter(help="In the background; returns when it is ready.")] = False,
    replace: Annotated[bool, Parameter(help="End the one that runs, if one does.")] = False,
    ready_fd: Annotated[int | None, Parameter(show=False)] = None,
) -> int:
    """Run the daemon that keeps a farm: machines are watched, restarted, and can be asked for.

    Access is by the mode of its unix socket: its user, and with --group its members.
    SIGTERM or Ctrl-C ends it; the machines live on, and the next daemon adopts them.
    """
    from qmpkit.cli.serve import detach as serve_detached
    from qmpkit.cli.serve import serve_farm
    from qmpkit.cli.which_farm import which_farm

    which = which_farm(farm)
    if replace:
        import trio

        from qmpkit.cli.serve import end_daemon

        await trio.to_thread.run_sync(end_daemon, which)
    if detach:
        serve_detached(which, group)
        return 0
    return await serve_farm(which, group, ready_fd)


def systemd(
    *,
    farm: Farm = None,
    group: Shared = None,
    user: Annotated[
        bool, Parameter(help="A unit for your own systemd (systemctl --user), without root.")
    ] = False,
) -> int:
    """Print a systemd unit that runs a farm's daemon.

    qmpkit systemd --farm lab > /etc/systemd/system/qmpkit-lab.service
    systemctl enable --now qmpkit-lab
    """
    from qmpkit.cli.systemd import print_unit
    from qmpkit.cli.which_farm import which_farm

    return print_unit(which_farm(farm), group, user=user)


ALL: tuple[Callable[..., Any], ...] = (serve, systemd)
