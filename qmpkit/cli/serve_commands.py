"""The commands that run a farm's daemon, as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    log_file: Annotated[Path | None, Parameter(show=False)] = None,
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
    return await serve_farm(which, group, ready_fd, log_file)


def systemd(
    *,
    farm: Farm = None,
    group: Shared = None,
    user: Annotated[
        bool, Parameter(help="Units for your own systemd (systemctl --user), without root.")
    ] = False,
    install: Annotated[bool, Parameter(help="Write them where systemd looks.")] = False,
) -> int:
    """Print the systemd units that run a farm's daemon: at boot, and when somebody asks for it.

    A socket, by which the first command starts the daemon, and the service.

      qmpkit systemd --farm lab --install
      systemctl daemon-reload && systemctl enable --now qmpkit-lab.socket qmpkit-lab.service
    """
    from qmpkit.cli.systemd import install_units, print_units
    from qmpkit.cli.which_farm import which_farm

    return (install_units if install else print_units)(which_farm(farm), group, user=user)


ALL: tuple[Callable[..., Any], ...] = (serve, systemd)
