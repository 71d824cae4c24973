"""The words that commands about a farm have in common, and what completes them in the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

__all__ = ["GROUP", "Farm", "Json", "Machine", "Name", "Names", "farm_names"]

GROUP = Group("Farms", sort_key=1)


def _machine_names(context: CompletionContext) -> list[str]:
    """Those of the farm that is named before the word that is being typed."""
    from qmpkit.cli.naming import machine_names

    farm = context.get("--farm")
    return machine_names(None if farm is None else farm.raw)


def farm_names(_: object) -> list[str]:
    """Those that have machines on record."""
    from qmpkit.process.roots import known_supervisors

    return known_supervisors()


Farm = Annotated[
    str | None,
    Parameter(
        name="--farm",
        help="The farm. Default: $QMPKIT_FARM, else the only one that has machines.",
        completer=farm_names,
    ),
]
Name = Annotated[str, Parameter(help="A machine.", completer=_machine_names)]
Names = Annotated[
    tuple[str, ...],
    Parameter(help="Machines; web* means all that begin so.", completer=_machine_names),
]
Machine = Annotated[str | None, Parameter(help="Only of this machine.", completer=_machine_names)]
Json = Annotated[bool, Parameter(help="As JSON.")]
