"""A change of an image's own bookkeeping, in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Secret, held_keys
from qmpkit.images.opening import changeable, image_options
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits

__all__ = ["changed"]


async def changed(
    asked: Asked,
    format: str,
    words: Sequence[str],
    after: Sequence[str] = (),
    *,
    secret: Secret | None = None,
    new_secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> None:
    """Run qemu-img with *words*, the image, and what comes *after* it.

    Nobody may use the image, and its chain is looked at first.  *secret* opens it; *new_secret*
    is the object `key1` for *words*.  Once begun, a cancellation lets it end in order.
    """
    with held_keys(secret, new_secret) as keys:
        look = partial(changeable, asked, format, keys[0], allowed)
        chain, _ = await trio.to_thread.run_sync(look)
        # `snapshot` knows no -f, and would guess.
        name = await trio.to_thread.run_sync(image_options, chain, keys[0])
        held = [key for key in keys if key is not None]
        objects = [word for key in held for word in key.words]
        await run_qemu_img(
            [*words, *objects, "--image-opts", "--", name, *after],
            asked,
            limits or limits_of_chain(len(chain.layers)),
            fds={child: fd for key in held for child, fd in key.fds.items()},
            on_stdout=percentages(progress) if progress else None,
            opens=chain.files,
            in_place=True,
        )
    if progress:
        progress._set(1.0)
