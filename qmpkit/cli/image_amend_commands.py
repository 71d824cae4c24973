"""`qmpkit image amend` and `qmpkit image key …` as the shell sees them: words, options, help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from qmpkit.cli.image_words import (
    Allowed,
    AsJson,
    Image,
    SecretFile,
    StatedFormat,
    file_word,
    secret_word,
)

__all__ = ["AMEND", "KEY"]

Opening = Annotated[
    Path,
    secret_word(
        name="--secret-file",
        help="The file with a secret that opens the image, to the byte, a newline too; - is stdin, "
        "/dev/fd/N a descriptor.",
    ),
]
NewSecret = Annotated[
    Path, secret_word("The file with the new secret, as above.", name="--new-secret-file")
]
IterTime = Annotated[
    int | None, Parameter(help="Milliseconds that testing the secret shall take. Default: 2000.")
]


async def amend(
    file: Image,
    /,
    *,
    compat: Annotated[
        Literal["0.10", "1.1"] | None, Parameter(help="qcow2: 0.10 is for QEMU before 1.1.")
    ] = None,
    lazy_refcounts: Annotated[
        Literal["on", "off"] | None,
        Parameter(help="qcow2: quicker, repaired when opened after a crash."),
    ] = None,
    refcount_bits: Annotated[
        int | None, Parameter(help="qcow2: 1, 2, 4, … 64 for each cluster. QEMU's default: 16.")
    ] = None,
    data_file: Annotated[
        Path | None, file_word("Where the file with its content is, which was moved.")
    ] = None,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
    allow: Allowed = None,
    json: AsJson = False,
) -> None:
    """Change how an image keeps its books, without a copy.

    What a guest reads stays the same. The secrets of an encrypted image are changed by
    `qmpkit image key`.
    """
    from qmpkit.cli.image_amend import amend

    lazy = None if lazy_refcounts is None else lazy_refcounts == "on"
    await amend(
        file,
        format,
        secret_file,
        allow,
        compat=compat,
        lazy_refcounts=lazy,
        refcount_bits=refcount_bits,
        data_file=data_file,
        as_json=json,
    )


async def key_list(file: Image, /, *, format: StatedFormat = None, json: AsJson = False) -> None:
    """List the slots for secrets that are taken, of eight."""
    from qmpkit.cli.image_amend import list_keys

    await list_keys(file, format, as_json=json)


async def key_add(
    file: Image,
    /,
    *,
    secret_file: Opening,
    new_secret_file: NewSecret,
    slot: Annotated[int | None, Parameter(help="0 to 7. Default: the first free one.")] = None,
    iter_time: IterTime = None,
    format: StatedFormat = None,
    json: AsJson = False,
) -> None:
    """Let another secret open an encrypted image, too."""
    from qmpkit.cli.image_amend import add_key

    await add_key(file, format, (secret_file, new_secret_file), slot, iter_time, as_json=json)


async def key_remove(
    file: Image,
    /,
    *,
    secret_file: Opening,
    old_secret_file: Annotated[
        Path | None, secret_word("The file with the secret that is to go.")
    ] = None,
    slot: Annotated[int | None, Parameter(help="Or the slot that it is in, 0 to 7.")] = None,
    format: StatedFormat = None,
    json: AsJson = False,
) -> None:
    """Let a secret open an encrypted image no more; the last one stays."""
    from qmpkit.cli.image_amend import remove_key

    await remove_key(file, format, (secret_file, old_secret_file), slot, as_json=json)


async def key_change(
    file: Image,
    /,
    *,
    secret_file: Opening,
    new_secret_file: NewSecret,
    iter_time: IterTime = None,
    format: StatedFormat = None,
    json: AsJson = False,
) -> None:
    """Let a new secret open an encrypted image in the place of the old one.

    Whatever interrupts it, one of the two opens it.
    """
    from qmpkit.cli.image_amend import change_key

    await change_key(file, format, (secret_file, new_secret_file), iter_time, as_json=json)


AMEND: Callable[..., Any] = amend
KEY: dict[str, Callable[..., Any]] = {
    "list": key_list,
    "add": key_add,
    "remove": key_remove,
    "change": key_change,
}
