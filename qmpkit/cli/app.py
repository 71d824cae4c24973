"""The application: its commands and its global options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from qmpkit import __version__
from qmpkit.cli import (
    backup_commands,
    commands,
    device_commands,
    disk_commands,
    farm_commands,
    guest_commands,
    image_amend_commands,
    image_commands,
    image_more_commands,
    migrate_commands,
    resource_commands,
    save_commands,
    serve_commands,
    store_commands,
    template_commands,
    tune_commands,
)
from qmpkit.cli.exits import EXIT_TABLE, Exit
from qmpkit.cli.farm_words import GROUP
from qmpkit.cli.report import debug_wanted, reported
from qmpkit.cli.talk import DataConsole, route_log, talk

__all__ = ["app", "run"]

app = App(
    name="qmpkit",
    version=f"qmpkit {__version__}",
    help="Run QEMU/KVM virtual machines without libvirt.",
    help_epilogue=EXIT_TABLE,
    help_format="plaintext",
    backend="trio",
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative="", show_default=False),
)


def _flowing(text: str) -> str:
    """A docstring's paragraphs as one line each, for the terminal to break; indented lines stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to print it for.")],
    /,
) -> None:
    """Print a script for completion with Tab.

    It completes commands, options and the names of profiles. Put it where the shell looks:

      bash: qmpkit completion bash > ~/.local/share/bash-completion/completions/qmpkit
      zsh:  qmpkit completion zsh > ~/.zfunc/_qmpkit   (with ~/.zfunc in fpath)
      fish: qmpkit completion fish > ~/.config/fish/completions/qmpkit.fish
    """
    from qmpkit.cli.completion import completion_script

    print(completion_script(app, shell))


image = App(name="image", help="Make, look at and change disk images.")
snapshot = App(name="snapshot", help="Remember what a machine's disks hold, while it runs.")
device = App(name="device", help="Plug devices into a machine and out of it, while it runs.")
cpu = App(name="cpu", help="Plug processors into a machine, while it runs.")
memory = App(name="memory", help="Plug memory into a machine and out of it, while it runs.")
lab = App(name="lab", help="Remember several machines at one moment, and go back to it together.")
disk = App(name="disk", help="Move, grow and bound a machine's disks, while it runs.")
inner = App(name="snapshot", help="Snapshots inside an image that no machine uses.")
key = App(name="key", help="Secrets that open an encrypted image that no machine uses.")
bitmap = App(name="bitmap", help="Dirty bitmaps inside an image that no machine uses.")
template = App(name="template", help="Save machines that have booted, to be cloned at once.")
pool = App(name="pool", help="Hold clones ready, and run commands in fresh ones.")
backup = App(name="backup", help="Make, list, verify, restore and prune backups.")


def _add(to: App, commands: Iterable[Callable[..., Any] | App], group: Group | None = None) -> None:
    for place, command in enumerate(commands):
        if isinstance(command, App):
            command.sort_key = place
            to.command(command)
        else:
            help_ = _flowing(command.__doc__ or "")
            to.command(command, help=help_, sort_key=place, group=group)


def _add_named(to: App, commands: Mapping[str, Callable[..., Any]]) -> None:
    for place, (name, command) in enumerate(commands.items()):
        to.command(command, name=name, help=_flowing(command.__doc__ or ""), sort_key=place)


_add_named(inner, image_more_commands.SNAPSHOT)
_add_named(bitmap, image_more_commands.BITMAP)
_add_named(key, image_amend_commands.KEY)
*_of_images, _build = image_commands.ALL
_insides = [inner, bitmap, key]
_more = [*image_more_commands.MORE, image_amend_commands.AMEND]
_add(image, [*_of_images, *_more, *_insides, _build, *store_commands.ALL])
_add_named(snapshot, disk_commands.SNAPSHOT)
_add_named(disk, disk_commands.DISK)
_add_named(device, device_commands.DEVICE)
_add_named(cpu, resource_commands.CPU)
_add_named(memory, resource_commands.MEMORY)
_add_named(lab, save_commands.LAB)
for _group in (snapshot, disk, device, cpu, memory, lab):
    _group.group = (GROUP,)
_add(backup, backup_commands.ALL)
_add(template, template_commands.TEMPLATE)
_add(pool, template_commands.POOL)
_alone: list[Callable[..., Any] | App] = [*commands.ALL, *tune_commands.HOST, image, backup]
_alone += [template, *template_commands.CLONE, pool]
_add(app, [*_alone, completion, *save_commands.FOLDERS])
_of_farms: list[Callable[..., Any] | App] = [*farm_commands.ALL, *tune_commands.FARM]
_of_farms += [*migrate_commands.ALL, *save_commands.ALL, *guest_commands.ALL]
_of_farms += [snapshot, lab, disk, device, cpu, memory]
_add(app, _of_farms, GROUP)
_add(app, serve_commands.ALL, GROUP)

app.meta.suppress_keyboard_interrupt = False  # not handed down; ours says something


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[
        bool, Parameter(help="Show the library's log, and tracebacks of errors.")
    ] = False,
) -> Any:
    route_log(debug or debug_wanted())
    return app(tokens)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status and never raises an Exception."""
    app.console = app.meta.console = DataConsole()

    def parsed() -> Any:
        try:
            return app.meta(list(argv))
        except CycloptsError as error:
            return _usage(error)

    return reported(parsed)


def _usage(error: CycloptsError) -> int:
    error.verbose = False
    command = " ".join(["qmpkit", *(error.command_chain or ())])
    talk.error(f"{error} Try '{command} --help'.")
    return Exit.MISTAKE
