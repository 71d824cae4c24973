"""Writing what an overlay holds into its base."""

from __future__ import annotations

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
from qmpkit.images.users import overlays_of
from qmpkit.process.limits import Limits

__all__ = ["commit"]


async def commit(
    path: StrPath,
    format: str,
    *,
    shared: bool = False,
    keep: bool = False,
    secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """Write what the overlay at *path* holds into its base; gives back where that is.

    The base then shows what the overlay showed, and grows to its size.  The overlay is
    emptied and stays, ready for more; with *keep* it is left full, to be removed.

    Every other overlay of that base shows a broken disk afterwards.  Those that can be
    known, by the images beside the two and by the QEMUs of this host, are an error, the
    former unless *shared* says that they may break.

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
        look = partial(_look, asked, format, key, allowed, shared=shared)
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
    asked: Asked, format: str, key: Key | None, allowed: Allowed, *, shared: bool
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
    others = overlays_of(base.path, (base.path.parent, asked.path.parent))
    others = tuple(other for other in others if not other.samefile(asked.path))
    if others and not shared:
        named = ", ".join(repr(str(other)) for other in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise asked.failed(
            f"its base {str(base.path)!r} has other overlays, which would break: {named}{more}",
            "convert it into an image of its own, or say shared=True (--shared) if those may break",
        )
    return chain, image
