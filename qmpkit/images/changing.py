"""A small change of an image's own bookkeeping, in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from qmpkit.images.keys import Secret, held_keys
from qmpkit.images.opening import changeable, image_options
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img

__all__ = ["changed"]


async def changed(
    asked: Asked,
    format: str,
    words: Sequence[str],
    after: Sequence[str] = (),
    *,
    secret: Secret | None = None,
) -> None:
    """Run qemu-img with *words*, the image, and what comes *after* it.

    Nobody may use the image, and its chain is looked at first.  Once begun, a cancellation
    lets it end in order.
    """
    with held_keys(secret) as (key,):
        look = partial(changeable, asked, format, key)
        chain, image = await trio.to_thread.run_sync(look)
        # `snapshot` knows no -f, and would guess.
        name = await trio.to_thread.run_sync(image_options, chain, key)
        objects = key.words if key else ()
        await run_qemu_img(
            [*words, *objects, "--image-opts", "--", name, *after],
            asked,
            limits_of_chain(len(chain.layers)),
            fds=image.fds,
            in_place=True,
        )
