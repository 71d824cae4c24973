"""`qmpkit image …` as the shell sees it: words, options, help.  The deeds are in `cli.image`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

__all__ = ["ALL"]

# Stated, so that a name that is misspelt is told, and Tab knows them.
Writable = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"]
Readable = Literal[
    "qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels",
    "qcow", "luks", "dmg", "bochs", "cloop",
]  # fmt: skip


def _named(_: object, tokens: Sequence[Token]) -> Path:
    # Path("") is the current directory, which an unset variable of a script does not mean.
    if not tokens[0].value:
        raise ValueError("The name is empty.")
    return Path(tokens[0].value)


def _file(help: str) -> Parameter:
    return Parameter(help=help, converter=_named)


Image = Annotated[Path, _file("The image's file.")]
NewImage = Annotated[Path, _file("Where to make it; nothing may be there.")]
StatedFormat = Annotated[
    Readable | None,
    Parameter(name="--format", help="Its format (qcow2, raw, …). Default: what its header says."),
]
AsJson = Annotated[bool, Parameter(name="--json", help="JSON; sizes in bytes.")]
NewFormat = Annotated[
    Writable, Parameter(name="--format", help="The new image's format. Default: qcow2.")
]


async def create(
    file: NewImage,
    size: Annotated[str, Parameter(help="What the guest sees: 10GiB, 512MiB, or bytes.")],
    /,
    *,
    format: NewFormat = "qcow2",
) -> None:
    """Make an empty disk image."""
    from qmpkit.cli.image import create

    await create(file, size, format)


async def overlay(
    file: NewImage,
    base: Annotated[
        Path, _file("The image it shows, also by its name in the store; from now on only read.")
    ],
    /,
    *,
    base_format: Annotated[
        Readable | None, Parameter(help="The base's format. Default: what its header says.")
    ] = None,
) -> None:
    """Make an image that holds only what differs from a base."""
    from qmpkit.cli.image import overlay

    await overlay(file, base, base_format)


async def info(file: Image, /, *, format: StatedFormat = None, json: AsJson = False) -> None:
    """Show what an image is, and every base below it.

    It may be in use: who has it open is shown too. Nothing is changed.
    """
    from qmpkit.cli.image import show_info

    await show_info(file, format, as_json=json)


async def check(
    file: Image,
    /,
    *,
    format: StatedFormat = None,
    repair: Annotated[
        Literal["leaks", "all"] | None,
        Parameter(help="Mend lost space only (leaks, safe), or everything. Default: only look."),
    ] = None,
    json: AsJson = False,
) -> int:
    """Check an image's own bookkeeping; not the file systems in it.

    Exit status 0: sound (lost space is told, and harms nothing); 1: damaged.
    """
    from qmpkit.cli.image import check

    return await check(file, format, repair, as_json=json)


async def resize(
    file: Image,
    size: Annotated[
        str,
        Parameter(help="The new size (20GiB), or the change (+5GiB).", allow_leading_hyphen=True),
    ],
    /,
    *,
    format: StatedFormat = None,
    shrink: Annotated[
        bool, Parameter(help="Allow a smaller size: what lies beyond it is lost.")
    ] = False,
) -> None:
    """Change the size that the guest sees.

    Partitions and file systems in it stay as they are: the guest has to change those.
    """
    from qmpkit.cli.image import resize

    await resize(file, size, format, shrink=shrink)


async def convert(
    source: Annotated[Path, _file("The image to copy.")],
    target: Annotated[Path, _file("Where to write the copy.")],
    /,
    *,
    format: NewFormat = "qcow2",
    source_format: Annotated[
        Readable | None, Parameter(help="The source's format. Default: what its header says.")
    ] = None,
    compress: Annotated[bool, Parameter(help="Compress the copy (qcow2).")] = False,
    replace: Annotated[bool, Parameter(help="Put it in the place of a file that exists.")] = False,
) -> None:
    """Copy an image, with all its bases, into one new image.

    The target appears when it is whole. Ctrl-C leaves nothing of it.
    """
    from qmpkit.cli.image import convert

    await convert(source, target, source_format, format, compress=compress, replace=replace)


def build(
    guest: Annotated[Literal["debian"], Parameter(help="Which guest.")],
    /,
    *,
    refresh: Annotated[bool, Parameter(help="Build it anew with today's packages.")] = False,
) -> None:
    """Build a disk image with a guest system, once, and print its path.

    debian: Debian 12 with systemd, cloud-init, OpenSSH and the guest agent, booted by
    BIOS or UEFI. It is kept in the cache directory: run it as an overlay, which is what
    `qmpkit run` does.
    """
    from qmpkit.cli.image import build

    build(guest, refresh=refresh)


ALL: tuple[Callable[..., Any], ...] = (info, create, overlay, check, resize, convert, build)
