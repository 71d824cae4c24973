"""The application: its commands, its global options, and how every error leaves it."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from qmpkit import __version__
from qmpkit.cli import commands, farm_commands, guest_commands, image_commands, serve_commands
from qmpkit.cli.exits import EXIT_TABLE, Exit, Refusal, exit_of
from qmpkit.cli.farm_words import GROUP
from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import route_log, talk
from qmpkit.errors import Fault, LaunchFailed, SpecInvalid

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


def _add(to: App, commands: Iterable[Callable[..., Any] | App], group: Group | None = None) -> None:
    for place, command in enumerate(commands):
        if isinstance(command, App):
            command.sort_key = place
            to.command(command)
        else:
            help_ = _flowing(command.__doc__ or "")
            to.command(command, help=help_, sort_key=place, group=group)


_add(image, image_commands.ALL)
_add(app, [*commands.ALL, image, completion])
_add(app, [*farm_commands.ALL, *guest_commands.ALL, *serve_commands.ALL], GROUP)

app.meta.suppress_keyboard_interrupt = False  # not handed down; ours says something


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[
        bool, Parameter(help="Show the library's log, and tracebacks of errors.")
    ] = False,
) -> Any:
    route_log(debug or os.environ.get("QMPKIT_DEBUG", "0") not in ("", "0"))
    return app(tokens)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status and never raises an Exception."""
    try:
        status = app.meta(list(argv))
        sys.stdout.flush()
    except CycloptsError as error:
        return _usage(error)
    except BrokenPipeError:
        return _unread()
    except (Exception, KeyboardInterrupt) as error:
        return _report(error)
    return status if isinstance(status, int) else Exit.OK


def _usage(error: CycloptsError) -> int:
    error.verbose = False
    command = " ".join(["qmpkit", *(error.command_chain or ())])
    talk.error(f"{error} Try '{command} --help'.")
    return Exit.MISTAKE


def _unread() -> int:
    # Whoever read our output has left. Python would complain once more when it flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.UNREAD


def _report(error: BaseException) -> int:
    status = exit_of(error)
    if status is None or talk.debug:
        talk.trace("".join(traceback.format_exception(error)).rstrip())
    if status is None:
        talk.error("this is a bug in qmpkit, please report it with the lines above")
        return Exit.FAILED
    for leaf in _leaves(error):
        talk.error("interrupted" if isinstance(leaf, KeyboardInterrupt) else _sentence(leaf))
    return status


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if isinstance(error, LaunchFailed) and not talk.debug:
        return f"{error.brief}\n(`--debug` shows QEMU's command.)"
    if isinstance(error, SpecInvalid):  # its lines are its faults, and no name may add one
        return str(
            SpecInvalid([_one_line(fault) for fault in error.faults], one_line(error.source))
        )
    return one_line(error) if isinstance(error, Refusal) else str(error)


def _one_line(fault: Fault) -> Fault:
    return Fault(one_line(fault.path), one_line(fault.message), one_line(fault.hint))
