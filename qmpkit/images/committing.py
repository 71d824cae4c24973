"""Writing what an overlay holds into its base."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import trio

from qmpkit.host.chain import Chain
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed, refuse_used
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.opening import Opened, changeable
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.snapshot_table import refuse_snapshots
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.images.users import overlays_of, overlays_under
from qmpkit.process.limits import Limits

__all__ = ["commit"]


async def commit(
    path: StrPath,
    format: str,
    *,
    shared: bool = False,
    keep: bool = False,
    look_in: Iterable[StrPath] = (),
    secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """Write what the overlay at *path* holds into its base; gives back where that is.

    The base then shows what the overlay showed, and grows to its size.  The overlay is
    emptied and stays, ready for more; with *keep* it is left full, to be removed.

    Every other overlay of that base shows a broken disk afterwards, and no image knows its
    overlays.  Those that can be known are an error: by the QEMUs of this host, by the images
    beside the two, and by those in and below the folders *look_in*, all of which can be looked
    into; but for the first, unless *shared* says that they may break.  An overlay anywhere
    else is not seen.

    The overlay keeps its content until all of it is safe in the base.  Cancelled, killed or
    out of space, the overlay reads as it did, while the base may be between the old and
    the new: commit again.  The bitmaps of both may be broken then, as after a crash.
    *progress* is told how far it is.

    *secret* opens every encrypted image of the chain.  *allowed*: folders in which all
    files must be that it names, None for any.  `ImageFailed` when there is no base, when
    its format is not recorded, when the overlay has snapshots, which would break, when
    qemu-img fails or *limits* are met (None: memory alone); `ImageInUse` when a QEMU has
    one of the two open.
    """
    asked = Asked.of("commit", path)
    with held_keys(secret) as (key,):
        folders = () if shared else tuple(map(Path, look_in))
        look = partial(_look, asked, format, key, allowed, folders, shared=shared)
        chain, image = await trio.to_thread.run_sync(look)
        base = chain.layers[1]
        await run_qemu_img(
            ["commit", "-p", *(["-d"] if keep else []), *image.words, "--", image.name],
            asked,
            limits or limits_of_chain(len(chain.layers)),
            fds=image.fds,
            on_stdout=percentages(progress) if progress else None,
            opens=chain.files,
            cure="its content is whole; what the base holds is not: commit again",
            long=True,
        )
    if progress:
        progress._set(1.0)
    return base.path


def _look(
    asked: Asked,
    format: str,
    key: Key | None,
    allowed: Allowed,
    folders: tuple[Path, ...],
    *,
    shared: bool,
) -> tuple[Chain, Opened]:
    chain, image = changeable(asked, format, key, allowed)
    if len(chain.layers) < 2:
        raise asked.failed("it has no base", "only an overlay can be committed")
    refuse_snapshots(asked, format)
    base = chain.layers[1]
    if not chain.layers[0].header.backing_format:
        rebase = f"qmpkit image rebase --unsafe {str(asked.path)!r} {str(base.path)!r}"
        raise asked.failed("the format of its base is not recorded", f"record it: {rebase}")
    refuse_used(Asked("commit to", base.path), for_writing=True)
    others = _others(asked, base.path, folders)
    if others and not shared:
        named = ", ".join(repr(str(other)) for other in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise asked.failed(
            f"its base {str(base.path)!r} has other overlays, which would break: {named}{more}",
            "convert it into an image of its own, or say shared=True (--shared) if those may break",
        )
    return chain, image


def _others(asked: Asked, base: Path, folders: tuple[Path, ...]) -> list[Path]:
    """What is on the base, but for the overlay itself."""
    beside = overlays_of(base, (base.parent, asked.path.parent))
    try:
        found = dict.fromkeys([*beside, *overlays_under(base, folders)])
        return [other for other in found if not other.samefile(asked.path)]
    except OSError as error:
        said = f"{error.filename!r} cannot be looked into: {error.strerror}"
        raise asked.failed(said, "an overlay may be there: name folders you may read") from error
