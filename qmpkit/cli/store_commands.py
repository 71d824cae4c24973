"""`qmpkit image pull`, `ls`, `rm`, `gc`, `verify` as the shell sees them: words, options, help.

The deeds are in `cli.store`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from qmpkit.cli.image_words import LookIn

__all__ = ["ALL"]


def _catalogue(_: object) -> list[str]:
    from qmpkit.cli.naming import catalogue_names

    return catalogue_names()


def _images(_: object) -> list[str]:
    from qmpkit.cli.naming import image_names

    return image_names()


_GONE = "Overlays that are not where they were made are deleted, and not moved."
AsJson = Annotated[bool, Parameter(name="--json", help="JSON; sizes in bytes.")]
Gone = Annotated[bool, Parameter(help=_GONE)]
Names = Annotated[
    tuple[str, ...],
    Parameter(help="Names, or digests from eight digits on.", completer=_images),
]


async def pull(
    what: Annotated[
        str,
        Parameter(
            help="A name (see `qmpkit image ls --catalogue`), a URL or a file.",
            completer=_catalogue,
        ),
    ],
    /,
    *,
    name: Annotated[str | None, Parameter(help="What to call it. Default: as it is.")] = None,
    arch: Annotated[
        Literal["x86_64", "aarch64", "riscv64"] | None,
        Parameter(help="Of the catalogue's. Default: this host's."),
    ] = None,
    format: Annotated[
        Literal["qcow2", "raw"] | None,
        Parameter(help="Its format. Default: the catalogue's, else what its header says."),
    ] = None,
    sha256: Annotated[str | None, Parameter(help="The sum it must have: 64 digits.")] = None,
    checksums: Annotated[
        str | None,
        Parameter(help="A URL or file with its publisher's sums: SHA256SUMS, CHECKSUM, …"),
    ] = None,
    signature: Annotated[
        str | None, Parameter(help="What signs them. Default: their name with .gpg, or inside.")
    ] = None,
    keyring: Annotated[
        str | None, Parameter(help="A file of keys, one of which must have signed them.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        Parameter(help="PEM certificates of authorities to trust besides this host's, for https."),
    ] = None,
    refresh: Annotated[bool, Parameter(help="Pull it though it is here.")] = False,
) -> None:
    """Have an image in the store, and print its path.

    It is checked against its publisher's sums, unpacked (xz, gzip, bzip2, zstd), looked
    at, and from then on only read: make overlays on it. What is here does not come
    again; Ctrl-C leaves what has come, and the next time goes on with it.
    """
    from qmpkit.cli.store import pull

    await pull(
        what,
        ca_file,
        name=name,
        arch=arch,
        format=format,
        sha256=sha256,
        checksums=checksums,
        signature=signature,
        keyring=keyring,
        refresh=refresh,
    )


async def ls(
    *,
    catalogue: Annotated[bool, Parameter(help="What can be pulled by a name instead.")] = False,
    json: AsJson = False,
) -> None:
    """List the images in the store."""
    from qmpkit.cli.store import list_catalogue, list_images

    if catalogue:
        await list_catalogue(as_json=json)
    else:
        await list_images(as_json=json)


async def rm(names: Names, /, *, gone: Gone = False, look_in: LookIn = None) -> None:
    """Remove images from the store, unless overlays are on them."""
    from qmpkit.cli.store import remove

    await remove(names, look_in or (), gone=gone)


async def gc(
    *,
    gone: Gone = False,
    look_in: LookIn = None,
    dry_run: Annotated[bool, Parameter(help="Only tell what would go.")] = False,
    json: AsJson = False,
) -> None:
    """Remove the images that a later one has taken the name of, and what crashes have left.

    What an overlay, a kept machine's disk or a process needs stays, and so does what they
    may need. An overlay that plain qemu-img has made, or that was copied elsewhere, is known
    only when --look-in has found it.
    """
    from qmpkit.cli.store import collect

    await collect(look_in or (), gone=gone, dry_run=dry_run, as_json=json)


async def verify(names: Names = (), /, *, json: AsJson = False) -> int:
    """Read images of the store, by default all, and compare them with their digests.

    Exit status 0: all are what they were; 1: one is damaged.
    """
    from qmpkit.cli.store import verify

    return await verify(names, as_json=json)


ALL: tuple[Callable[..., Any], ...] = (pull, ls, rm, gc, verify)
