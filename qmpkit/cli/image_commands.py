"""`qmpkit image …` as the shell sees it: words, options, help.  The deeds are in `cli.image`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from qmpkit.cli.image_words import (
    Allowed,
    AsJson,
    Image,
    NewFormat,
    NewImage,
    Readable,
    SecretFile,
    StatedFormat,
    file_word,
    secret_word,
)

__all__ = ["ALL"]

Preallocation = Annotated[
    Literal["metadata", "falloc", "full"] | None,
    Parameter(help="Take the space now (falloc), write all of it (full). Default: as needed."),
]
ClusterSize = Annotated[str | None, Parameter(help="qcow2: 512 to 2MiB. Default: 64KiB.")]
ExtendedL2 = Annotated[
    bool, Parameter(name="--extended-l2", help="qcow2: allocate parts of clusters by themselves.")
]
LazyRefcounts = Annotated[
    bool, Parameter(help="qcow2: quicker, repaired when opened after a crash.")
]
DataFile = Annotated[
    Path | None, file_word("qcow2: put the content into this new file of its own.")
]
DataFileRaw = Annotated[bool, Parameter(help="That file is at any time what a raw image would be.")]
NewSecret = Annotated[
    Path | None,
    secret_word(
        name="--secret-file",
        help="Encrypt it (qcow2, luks): the file with its secret, to the byte, a newline too; "
        "- is stdin, /dev/fd/N a descriptor.",
    ),
]


async def create(
    file: NewImage,
    size: Annotated[str, Parameter(help="What the guest sees: 10GiB, 512MiB, or bytes.")],
    /,
    *,
    format: NewFormat = "qcow2",
    preallocation: Preallocation = None,
    cluster_size: ClusterSize = None,
    extended_l2: ExtendedL2 = False,
    lazy_refcounts: LazyRefcounts = False,
    data_file: DataFile = None,
    data_file_raw: DataFileRaw = False,
    secret_file: NewSecret = None,
) -> None:
    """Make an empty disk image."""
    from qmpkit.cli.image import create
    from qmpkit.images import Options

    options = Options(
        preallocation=preallocation,
        cluster_size=cluster_size,
        extended_l2=extended_l2,
        lazy_refcounts=lazy_refcounts,
        data_file=data_file,
        data_file_raw=data_file_raw,
    )
    await create(file, size, format, options, secret_file)


async def overlay(
    file: NewImage,
    base: Annotated[
        Path, file_word("The image it shows, also by its name in the store; from now on only read.")
    ],
    /,
    *,
    base_format: Annotated[
        Readable | None, Parameter(help="The base's format. Default: what its header says.")
    ] = None,
    cluster_size: ClusterSize = None,
    extended_l2: ExtendedL2 = False,
    secret_file: NewSecret = None,
    allow: Allowed = None,
) -> None:
    """Make an image that holds only what differs from a base."""
    from qmpkit.cli.image import overlay
    from qmpkit.images import Options

    options = Options(cluster_size=cluster_size, extended_l2=extended_l2)
    await overlay(file, base, base_format, options, secret_file, allow)


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
    secret_file: SecretFile = None,
    allow: Allowed = None,
    json: AsJson = False,
) -> int:
    """Check an image's own bookkeeping; not the file systems in it.

    Exit status 0: sound (lost space is told, and harms nothing); 1: damaged.
    """
    from qmpkit.cli.image import check

    return await check(file, format, repair, secret_file, allow, as_json=json)


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
    secret_file: SecretFile = None,
    allow: Allowed = None,
) -> None:
    """Change the size that the guest sees.

    Partitions and file systems in it stay as they are: the guest has to change those.
    """
    from qmpkit.cli.image import resize

    await resize(file, size, format, secret_file, allow, shrink=shrink)


async def convert(
    source: Annotated[Path, file_word("The image to copy.")],
    target: Annotated[Path, file_word("Where to write the copy.")],
    /,
    *,
    format: NewFormat = "qcow2",
    source_format: Annotated[
        Readable | None, Parameter(help="The source's format. Default: what its header says.")
    ] = None,
    compress: Annotated[bool, Parameter(help="Compress the copy (qcow2).")] = False,
    replace: Annotated[bool, Parameter(help="Put it in the place of a file that exists.")] = False,
    preallocation: Preallocation = None,
    cluster_size: ClusterSize = None,
    extended_l2: ExtendedL2 = False,
    data_file: DataFile = None,
    data_file_raw: DataFileRaw = False,
    sparse: Annotated[
        str | None, Parameter(help="So many zeros become a hole; 0: none. Default: 4KiB.")
    ] = None,
    parallel: Annotated[
        int | None, Parameter(help="Requests at once, 1 to 16. Default: 8.")
    ] = None,
    snapshot: Annotated[
        str | None, Parameter(help="Copy this snapshot in it, not its present content.")
    ] = None,
    secret_file: NewSecret = None,
    source_secret_file: Annotated[
        Path | None, secret_word("The file with the secret that opens an encrypted source.")
    ] = None,
    allow: Allowed = None,
) -> None:
    """Copy an image, with all its bases, into one new image.

    The target appears when it is whole. Ctrl-C leaves nothing of it.
    """
    from qmpkit.cli.image import convert
    from qmpkit.images import Options

    options = Options(
        preallocation=preallocation,
        cluster_size=cluster_size,
        extended_l2=extended_l2,
        data_file=data_file,
        data_file_raw=data_file_raw,
    )
    await convert(
        source,
        target,
        source_format,
        format,
        compress=compress,
        replace=replace,
        options=options,
        secret_files=(source_secret_file, secret_file),
        sparse=sparse,
        parallel=parallel,
        snapshot=snapshot,
        allow=allow,
    )


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
