"""Words that several `qmpkit image` commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

__all__ = [
    "Allowed",
    "AsJson",
    "Image",
    "LookIn",
    "NewFormat",
    "NewImage",
    "Readable",
    "SecretFile",
    "StatedFormat",
    "Yes",
    "file_word",
    "secret_word",
]

# Stated, so that a name that is misspelt is told, and Tab knows them.
Writable = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "luks"]
Readable = Literal[
    "qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels",
    "qcow", "luks", "dmg", "bochs", "cloop",
]  # fmt: skip


def _named(_: object, tokens: Sequence[Token]) -> Path:
    # Path("") is the current directory, which an unset variable of a script does not mean.
    if not tokens[0].value:
        raise ValueError("The name is empty.")
    return Path(tokens[0].value)


def file_word(help: str) -> Parameter:
    """A file's name, which is not empty."""
    return Parameter(help=help, converter=_named)


def secret_word(help: str, *, name: str | None = None) -> Parameter:
    """A file with a secret; a lone dash is no option but stdin."""
    return Parameter(name=name, help=help, allow_leading_hyphen=True)


Image = Annotated[Path, file_word("The image's file.")]
NewImage = Annotated[Path, file_word("Where to make it; nothing may be there.")]
StatedFormat = Annotated[
    Readable | None,
    Parameter(name="--format", help="Its format (qcow2, raw, …). Default: what its header says."),
]
AsJson = Annotated[bool, Parameter(name="--json", help="JSON; sizes in bytes.")]
NewFormat = Annotated[
    Writable, Parameter(name="--format", help="The new image's format. Default: qcow2.")
]
SecretFile = Annotated[
    Path | None,
    secret_word(
        name="--secret-file",
        help="For an encrypted image: the file with its secret, to the byte, a newline too; "
        "- is stdin, /dev/fd/N a descriptor.",
    ),
]
Allowed = Annotated[
    list[Path] | None,
    Parameter(
        name="--allow",
        help="For a stranger's image: the folder in which all files must be that it names. "
        "Default: anywhere. Repeatable.",
        consume_multiple=False,
    ),
]
LookIn = Annotated[
    list[Path] | None,
    Parameter(
        name="--look-in",
        help="A folder to search, with all below it, for overlays that qmpkit does not know of. "
        "Repeatable.",
        consume_multiple=False,
    ),
]
Yes = Annotated[bool, Parameter(name="--yes", help="Do not ask.")]
