"""`qmpkit image amend` and `qmpkit image key …`: an image's books and its secrets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from qmpkit import images
from qmpkit.cli.exits import Refusal
from qmpkit.cli.image import changing, usable
from qmpkit.cli.image_secret import read_secret
from qmpkit.cli.image_view import image_to_dict
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.shown import shown_progress
from qmpkit.cli.tables import print_line
from qmpkit.cli.talk import noted, print_json, talk
from qmpkit.images import ImageInfo
from qmpkit.images.amending import Compat

__all__ = ["add_key", "amend", "change_key", "list_keys", "remove_key"]

Change = Callable[[str, bytes, bytes | None], Awaitable[ImageInfo]]


async def amend(
    file: Path,
    format: str | None,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    *,
    compat: Compat | None,
    lazy_refcounts: bool | None,
    refcount_bits: int | None,
    data_file: Path | None,
    as_json: bool,
) -> None:
    """Change how the image keeps its books, and say so."""
    async with (
        changing(file, format, secret_file, allow) as (image, secret),
        shown_progress(file.name) as progress,
    ):
        made = await images.amend(
            file,
            image.format,
            compat=compat,
            lazy_refcounts=lazy_refcounts,
            refcount_bits=refcount_bits,
            data_file=data_file,
            secret=secret,
            allowed=allow,
            progress=progress,
        )
    if as_json:
        print_json(image_to_dict(made))
    else:
        talk.say(f"{file}: is amended; a guest reads the same")


async def list_keys(file: Path, format: str | None, *, as_json: bool) -> None:
    """Print which slots are taken."""
    async with interruptible():
        image = await usable(file, format)
    if as_json:
        print_json(list(image.key_slots))
    elif not image.encrypted:
        print_line(f"{file} is not encrypted")
    else:
        print_line(f"{_slots(image)} of 8 taken")


async def add_key(
    file: Path,
    format: str | None,
    secret_files: tuple[Path, Path],
    slot: int | None,
    iter_time: int | None,
    *,
    as_json: bool,
) -> None:
    """Let another secret open it."""

    async def change(format: str, secret: bytes, new: bytes | None) -> ImageInfo:
        assert new is not None
        return await images.add_key(
            file, format, secret=secret, new_secret=new, slot=slot, iter_time=iter_time
        )

    made = await _changed(file, format, secret_files, change)
    _tell(made, f"{file}: the new secret opens it, too", as_json=as_json)


async def remove_key(
    file: Path,
    format: str | None,
    secret_files: tuple[Path, Path | None],
    slot: int | None,
    *,
    as_json: bool,
) -> None:
    """Let a secret open it no more."""

    async def change(format: str, secret: bytes, old: bytes | None) -> ImageInfo:
        return await images.remove_key(file, format, secret=secret, old_secret=old, slot=slot)

    if (secret_files[1] is None) is (slot is None):
        raise Refusal("say which secret is to go: --old-secret-file or --slot")
    made = await _changed(file, format, secret_files, change)
    _tell(made, f"{file}: that secret opens it no more", as_json=as_json)


async def change_key(
    file: Path,
    format: str | None,
    secret_files: tuple[Path, Path],
    iter_time: int | None,
    *,
    as_json: bool,
) -> None:
    """Let a new secret open it in the place of the old one."""

    async def change(format: str, secret: bytes, new: bytes | None) -> ImageInfo:
        assert new is not None
        return await images.change_key(
            file, format, secret=secret, new_secret=new, iter_time=iter_time
        )

    made = await _changed(file, format, secret_files, change)
    _tell(made, f"{file}: the new secret opens it, the old one no more", as_json=as_json)


async def _changed(
    file: Path, format: str | None, secret_files: tuple[Path, Path | None], change: Change
) -> ImageInfo:
    if all(str(secret_file) == "-" for secret_file in secret_files):
        raise Refusal("only one secret can come from stdin. Cure: /dev/fd/N for the other")
    async with changing(file, format, secret_files[0]) as (image, secret):
        other = await read_secret(secret_files[1])
        assert secret is not None
        async with noted(f"{file}: working, which takes seconds …"):
            made = await change(image.format, secret, other)
    return made


def _tell(image: ImageInfo, said: str, *, as_json: bool) -> None:
    if as_json:
        print_json(image_to_dict(image))
    else:
        talk.say(said)
        talk.note(f"{_slots(image)} of 8 taken")


def _slots(image: ImageInfo) -> str:
    return f"slots {', '.join(map(str, image.key_slots))}"
