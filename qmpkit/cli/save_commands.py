"""`qmpkit save`, `discard`, `saved` and `qmpkit lab …` as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from qmpkit.cli.farm_words import Farm, Json, Names

__all__ = ["ALL", "FOLDERS", "LAB"]


def _word(_: object, value: str) -> None:
    # An unset variable of a script is no name, and would be another path of the API.
    if not value or "/" in value:
        raise ValueError(f"{value!r} is no name.")


Point = Annotated[str, Parameter(help="The checkpoint's name.", validator=_word)]


def save(
    names: Names,
    /,
    *,
    ram: Annotated[
        Literal["plain", "packed", "mapped"],
        Parameter(
            help="How the memory is written: as it is, packed (zstd), or each page at its place, "
            "by several threads (QEMU 9.0)."
        ),
    ] = "plain",
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Save machines, memory and all, and end them: `start` has them go on where they were.

    Also after a reboot of the host. Their disks stay where they are, and nothing else may
    write to them meanwhile: a start finds that out, and says so. Of those that a pattern means,
    the ones that are up are saved.

      qmpkit save '*'      before the host goes down
      qmpkit start '*'     once it is back
    """
    from qmpkit.cli.save_actions import save_machines

    return save_machines(names, farm, ram=ram, as_json=json)


async def saved(
    folder: Annotated[Path, Parameter(help="The folder that a machine was saved in.")],
    /,
    *,
    verify: Annotated[
        bool, Parameter(help="Read every byte of it, instead of samples of its files.")
    ] = False,
    json: Json = False,
) -> int:
    """Show what is in the folder of a saved machine, and whether it can be restored.

    `qmpkit run FOLDER` has it go on. Exit status 0: it can be restored; 1: it cannot, and why.
    """
    from qmpkit.cli.saved_folder import show_saved

    return await show_saved(folder, verify=verify, as_json=json)


def discard(names: Names, /, *, farm: Farm = None) -> int:
    """Have saved machines boot when they are started, without the memory they were saved with.

    As after a power cut: what a guest had not written to its disks is lost.
    """
    from qmpkit.cli.save_actions import discard_saved

    return discard_saved(names, farm)


def checkpoint(
    checkpoint: Point,
    names: Names = (),
    /,
    *,
    description: Annotated[str, Parameter(help="What it is for.")] = "",
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Remember machines (default: all that are up) as they are at this moment, memory and all.

    They stand still together until it is written, then go on: all of them are in it, or there
    is no checkpoint.
    """
    from qmpkit.cli.save_actions import take_checkpoint

    return take_checkpoint(checkpoint, names, farm, description=description, as_json=json)


def rewind(checkpoint: Point, /, *, farm: Farm = None, json: Json = False) -> int:
    """Have the machines of a checkpoint as they were then, and go on together.

    What they have done since is lost; connections between them go on. When one of them
    cannot go back, all go on where they were.
    """
    from qmpkit.cli.save_actions import rewind_to

    return rewind_to(checkpoint, farm, as_json=json)


def list_(*, farm: Farm = None, json: Json = False) -> int:
    """Show the checkpoints, the oldest first."""
    from qmpkit.cli.save_actions import list_checkpoints

    return list_checkpoints(farm, as_json=json)


def rm(checkpoint: Point, /, *, farm: Farm = None) -> int:
    """Forget a checkpoint; the machines' data stay, merged while they run."""
    from qmpkit.cli.save_actions import delete_checkpoint

    return delete_checkpoint(checkpoint, farm)


ALL: tuple[Callable[..., Any], ...] = (save, discard)
FOLDERS: tuple[Callable[..., Any], ...] = (saved,)
LAB: dict[str, Callable[..., Any]] = {
    "checkpoint": checkpoint,
    "rewind": rewind,
    "list": list_,
    "rm": rm,
}
