"""`qmpkit template …`, `clone` and `pool` as the shell sees them: words, options, help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from qmpkit.cli.commands import Headless, Overrides, ReportJson, ToolsSocket

__all__ = ["CLONE", "POOL", "TEMPLATE"]


def _names(_: object) -> Sequence[str]:
    from qmpkit.cli.template_names import template_names

    return template_names()


_Template = Annotated[
    str,
    Parameter(
        help="A template's name (see `qmpkit template list`), or the path of its folder: ./web",
        completer=_names,
    ),
]
_Json = Annotated[bool, Parameter(name="--json", help="JSON; sizes in bytes.")]
_Twin = Annotated[
    bool, Parameter(help="As the template is in all that its guest knows, entropy included.")
]
_Keys = Annotated[bool, Parameter(help="New host keys for the guest's ssh server.")]


def _some(_: object, value: str | None) -> None:
    # An unset variable of a script is nothing to wait for.
    if value == "":
        raise ValueError("The text is empty.")


_AT_LEAST_1 = validators.Number(gte=1)


async def make(
    what: Annotated[
        str, Parameter(help="A disk image, a shipped profile's name, or a profile's file.")
    ],
    template: Annotated[str, Parameter(help="Its name, or the path of a new folder: ./web")],
    /,
    *,
    set: Overrides = (),
    wait: Annotated[
        str | None,
        Parameter(help="It has booted when its console shows this text.", validator=_some),
    ] = None,
    run: Annotated[
        tuple[str, ...],
        Parameter(
            help="A line for the guest's shell, to prepare it. Repeatable.",
            consume_multiple=False,
            allow_leading_hyphen=True,
        ),
    ] = (),
    service: Annotated[
        tuple[str, ...],
        Parameter(
            help="A service of the guest that is stopped for it, and started in each clone. "
            "Repeatable.",
            consume_multiple=False,
        ),
    ] = (),
    drop_caches: Annotated[bool, Parameter(help="Have the guest forget its page cache.")] = False,
    ram: Annotated[
        Path | None,
        Parameter(help="Where its RAM is to be, /dev/shm/web. Default: in its folder."),
    ] = None,
    twins: Annotated[
        bool, Parameter(help="Nothing is asked of the guest; its clones can only be twins.")
    ] = False,
    user: Annotated[
        str | None, Parameter(help="Of a disk image: have cloud-init make this user.")
    ] = None,
) -> None:
    """Boot a machine, prepare it and save it, to be cloned in a tenth of a second.

    On the board "microvm" a clone is there in two thirds of the time of q35, but nothing can be
    plugged into it; it boots by a kernel.

    It has booted when its guest agent answers, and systemd, where it is there, has started
    all; or when its console shows what --wait says. The image that it is made of stays as it
    is. Interrupted, nothing is left.

      qmpkit template make debian.qcow2 web --run 'apt-get install -y nginx'
      qmpkit template make microvm small --set kernel.image=vmlinuz --set kernel.initrd=initrd
      qmpkit template make tiny ./tiny
    """
    from qmpkit.cli.template import Making, make

    making = Making(
        what=what,
        template=template,
        overrides=set,
        wait=wait,
        run=run,
        services=service,
        drop_caches=drop_caches,
        ram=ram,
        twins=twins,
        user=user,
    )
    await make(making)


async def list(*, json: _Json = False) -> None:
    """Show the templates that can be called by name, and which of them lack a file.

    What is in their files is for `qmpkit template verify` to read.
    """
    from qmpkit.cli.template import show_templates

    await show_templates(as_json=json)


async def inspect(template: _Template, /, *, json: _Json = False) -> None:
    """Show what a template was made of, and what it needs of this host."""
    from qmpkit.cli.template import show_template

    await show_template(template, as_json=json)


async def verify(template: _Template, /, *, json: _Json = False) -> int:
    """Read all of a template, and compare checksums.

    Exit status 0: it is what was saved; 1: it is not.
    """
    from qmpkit.cli.template import verify

    return await verify(template, as_json=json)


async def rm(*templates: _Template) -> None:
    """Remove templates that no clone runs from."""
    from qmpkit.cli.template import remove

    await remove(templates)


async def clone(
    template: _Template,
    /,
    *,
    name: Annotated[
        str | None, Parameter(help="The clone's name, and its guest's. Default: a new one.")
    ] = None,
    twin: _Twin = False,
    ssh_host_keys: _Keys = False,
    headless: Headless = False,
    powerdown_grace: Annotated[
        float,
        Parameter(
            help="Seconds the guest has to power down when stopped; 0 ends it at once. Default: 0.",
            validator=validators.Number(gte=0),
        ),
    ] = 0.0,
    tools_socket: ToolsSocket = None,
    json: ReportJson = False,
) -> int:
    """Run a clone in the foreground until it ends, as `qmpkit run` does.

    It goes on where the template stood, as somebody else: its host name, addresses, ids and
    entropy are its own. What it writes is gone with it.
    """
    from qmpkit.cli.clone import run_clone
    from qmpkit.cli.foreground import Request

    request = Request(
        word=template,
        headless=headless or json,
        grace=powerdown_grace,
        tools_socket=tools_socket,
        as_json=json,
    )
    return await run_clone(request, name, twin=twin, ssh_host_keys=ssh_host_keys)


async def run(
    template: _Template,
    /,
    *command: Annotated[str, Parameter(help="What each guest runs.", allow_leading_hyphen=True)],
    times: Annotated[
        int | None, Parameter(help="In so many clones. Default: 1.", validator=_AT_LEAST_1)
    ] = None,
    lines: Annotated[
        bool, Parameter(help="One clone for each line of stdin, which is the last argument.")
    ] = False,
    jobs: Annotated[
        int, Parameter(help="So many at the same time. Default: 1.", validator=_AT_LEAST_1)
    ] = 1,
    warm: Annotated[
        int | None,
        Parameter(
            help="Clones that are held ready. Default: as many as jobs.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    memory: Annotated[
        str | None, Parameter(help="For all clones together: 8GiB. Default: what the host has.")
    ] = None,
    twin: _Twin = False,
    json: Annotated[bool, Parameter(help="A JSON object a line for each run.")] = False,
) -> int:
    """Run a command in the guest of a fresh clone, again and again.

    Each run has a machine of its own, which is thrown away after it. What the commands print
    comes when they end. The exit status is 1 when one of them failed.

      qmpkit pool run web -- uname -a
      ls tests | qmpkit pool run web --lines --jobs 4 -- /srv/run-one-test
    """
    from qmpkit.cli.pool import Work, run_in_pool

    work = Work(
        template=template,
        command=command,
        times=times,
        lines=lines,
        jobs=jobs,
        warm=jobs if warm is None else warm,
        memory=memory,
        twin=twin,
        as_json=json,
    )
    return await run_in_pool(work)


TEMPLATE: tuple[Callable[..., Any], ...] = (make, list, inspect, verify, rm)
CLONE: tuple[Callable[..., Any], ...] = (clone,)
POOL: tuple[Callable[..., Any], ...] = (run,)
