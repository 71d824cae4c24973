"""Images whose content is in a file of its own: made with it, and told where it is."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.host.chain import inside
from qmpkit.host.headers import read_header
from qmpkit.images.drafts import Draft, Placed, StrPath, new_image
from qmpkit.images.in_use import Allowed, refuse_used
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.options import Options
from qmpkit.images.tool import WRITE_LIMITS, Asked, run_qemu_img

__all__ = ["drafted", "record_data_file"]

_CHILD_FD = 4  # beside the image's own draft
# In the place of the base: with a file's name of its own, the one in the header is not looked at.
_NO_BASE = "backing.driver=raw,backing.file.driver=host_device,backing.file.filename=/dev/null"
_CLEANUP_GRACE = 5.0  # seconds; the bound is for a file system that hangs


@asynccontextmanager
async def drafted(
    path: StrPath,
    format: str,
    options: Options,
    key: Key | None,
    *,
    doing: str = "create",
    replace: bool = False,
    lasting: bool = False,
    allowed: Allowed = None,
) -> AsyncIterator[tuple[Draft, Draft | None]]:
    """Drafts of the image *path* and of its data file, None when *options* name none.

    The data file comes into its place first, and goes again when the image does not follow.
    It must be new, also with *replace*, and in one of the folders *allowed* (None: anywhere).
    As `new_image` otherwise; *key* opens the image.
    """
    beside = options.data_file
    if beside is None:
        async with new_image(path, format, doing=doing, replace=replace, lasting=lasting) as draft:
            yield draft, None
        return
    asked = Asked.of("make the data file", beside)
    if allowed is not None and not await trio.to_thread.run_sync(inside, asked.path, allowed):
        raise asked.failed("it is outside the allowed folders", "allow its folder, too")
    if asked.path == Asked.of(doing, path).path:
        raise asked.failed("it is the image itself", "name another")
    placed: Placed | None = None
    try:
        async with new_image(path, format, doing=doing, replace=replace, lasting=lasting) as draft:
            async with new_image(
                asked.path, "raw", doing=asked.doing, lasting=lasting, child_fd=_CHILD_FD
            ) as data:
                yield draft, data
                # qemu-img was told the draft's name, and has put that down.
                await _record(draft.asked, draft.path, data.path, data.target, key, (draft, data))
            placed = data.placed()
    except BaseException:
        if placed is not None:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(_unmake, placed, abandon_on_cancel=True)
        raise


def _unmake(placed: Placed) -> None:
    with suppress(OSError):
        if Placed.of(placed.path) == placed:
            placed.path.unlink()


async def record_data_file(
    path: StrPath, data_file: StrPath, secret: Secret | None, allowed: Allowed
) -> None:
    """Have the qcow2 at *path*, which nobody uses, know that its content is in *data_file*."""
    asked = Asked.of("amend", path)
    data = Asked.of(asked.doing, data_file).path
    based = await trio.to_thread.run_sync(_look, asked, data, allowed)
    with held_keys(secret) as (key,):
        await _record(asked, str(asked.path), str(data), data, key, on_a_base=based)


def _look(asked: Asked, data: Path, allowed: Allowed) -> bool:
    """Whether the image has a base, after every reason to refuse."""
    refuse_used(asked, for_writing=True)
    try:
        header = read_header(asked.path)
        mode = data.stat().st_mode
    except OSError as error:
        raise asked.failed_by(error) from error
    if not header.data_file:
        raise asked.failed("its content is in itself", "convert it, with a data file")
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise asked.failed(f"{str(data)!r} is neither a file nor a disk", "name another")
    if asked.path.samefile(data):
        raise asked.failed("the data file is the image itself", "name another")
    if allowed is not None and not inside(data, allowed):
        raise asked.failed(f"{str(data)!r} is outside the allowed folders", "allow its folder, too")
    return bool(header.backing)


async def _record(
    asked: Asked,
    image: str,
    now: str,
    name: Path,
    key: Key | None,
    drafts: Sequence[Draft] = (),
    *,
    on_a_base: bool = False,
) -> None:
    """Write *name* into the qcow2 *image*, whose data file is at *now*.  No base is opened."""
    options = ["driver=qcow2", "file.driver=file", f"file.filename={_escaped(image)}"]
    options += [f"data-file.driver={_driver(now)}", f"data-file.filename={_escaped(now)}"]
    if on_a_base:
        options.append(_NO_BASE)
    if key is not None:
        options.append(f"encrypt.key-secret={key.id}")
    objects = key.words if key else ()
    fds = {child: fd for draft in drafts for child, fd in draft.fds.items()}
    words = ["amend", "-q", *objects, "-o", f"data_file={_escaped(str(name))}"]
    await run_qemu_img(
        [*words, "--image-opts", "--", ",".join(options)],
        asked,
        WRITE_LIMITS,
        fds={**fds, **(key.fds if key else {})},
        opens=[Path(now)],
        in_place=not drafts,
    )


def _escaped(name: str) -> str:
    return name.replace(",", ",,")


def _driver(path: str) -> str:
    return "host_device" if Path(path).is_block_device() else "file"
