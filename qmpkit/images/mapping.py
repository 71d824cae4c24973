"""Where an image's content is, and how much another one of it would take."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import attrs
import trio

from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Secret, held_keys
from qmpkit.images.opening import readable
from qmpkit.images.options import DEFAULTS, Options, option_words
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.sizes import to_bytes

__all__ = ["Extent", "Measured", "extents", "measure"]


@attrs.frozen
class Extent:
    """A part of what a guest sees, in bytes, all of one kind.

    `depth`: which image of the chain it comes from, 0 the top.  `present`: one of them
    holds something for it.  `data`: it is to be read; else `zero`.  `compressed`: None
    where qemu-img does not tell (before 8.2).  `offset`: where it is in that image's
    file, None where it is nowhere by itself.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool | None
    offset: int | None


@attrs.frozen
class Measured:
    """How many bytes a new image would take: `required` now, `full` once all is written.

    `bitmaps`: what the persistent bitmaps would take besides, None without any.
    """

    required: int
    full: int
    bitmaps: int | None


async def extents(
    path: StrPath,
    format: str,
    *,
    start: int | str = 0,
    length: int | str | None = None,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits | None = None,
) -> tuple[Extent, ...]:
    """The map of the image at *path*: its parts from *start* on, *length* bytes or to the end.

    *secret* opens every encrypted image of the chain.  *allowed*: folders in which all
    files must be that it names, None for any.  `ImageFailed` when it cannot be read, when
    *limits* are met (None: memory alone), or when there are more parts than are kept
    (about 100,000): ask for a piece at a time.  `ImageInUse` when a QEMU writes to it.
    """
    asked = Asked.of("map", path)
    words = ["map", "--output=json", f"--start-offset={to_bytes(start, 'start')}"]
    if length is not None:
        words.append(f"--max-length={to_bytes(length, 'length')}")
    said = await _told(asked, format, words, secret, allowed, limits)
    try:
        return tuple(map(_extent, said))
    except (KeyError, TypeError) as error:
        raise asked.failed(f"qemu-img's answer is not understood: {error!r}") from error


async def measure(
    path: StrPath,
    format: str,
    target_format: str,
    *,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits | None = None,
) -> Measured:
    """What a copy of the image at *path*, in *target_format* (raw or qcow2), would take.

    *options* are the copy's.  For the rest as `extents`.
    """
    asked = Asked.of("measure", path)
    words = ["measure", "--output=json", "-O", target_format]
    words += option_words(options, target_format, None)
    said = await _told(asked, format, words, secret, allowed, limits)
    return _measured(asked, said)


async def _told(
    asked: Asked,
    format: str,
    words: list[str],
    secret: Secret | None,
    allowed: Allowed,
    limits: Limits | None,
) -> Any:
    """What qemu-img's JSON says of the image."""
    with held_keys(secret) as (key,):
        chain, image = await trio.to_thread.run_sync(partial(readable, asked, format, key, allowed))
        done = await run_qemu_img(
            [*words, *image.words, "--", image.name],
            asked,
            limits or limits_of_chain(len(chain.layers)),
            fds=image.fds,
            opens=chain.files,
            long=True,
        )
    if done.truncated:
        raise asked.failed("it is in too many parts to be kept", "ask for a piece: start, length")
    try:
        return json.loads(done.stdout.decode(errors="replace"))
    except ValueError as error:
        raise asked.failed(f"qemu-img's answer is not understood: {error!r}") from error


def _extent(said: dict[str, Any]) -> Extent:
    return Extent(
        start=said["start"],
        length=said["length"],
        depth=said["depth"],
        present=said["present"],
        zero=said["zero"],
        data=said["data"],
        compressed=said.get("compressed"),
        offset=said.get("offset"),
    )


def _measured(asked: Asked, said: dict[str, int]) -> Measured:
    try:
        return Measured(said["required"], said["fully-allocated"], said.get("bitmaps"))
    except (KeyError, TypeError) as error:
        raise asked.failed(f"qemu-img's answer is not understood: {error!r}") from error
