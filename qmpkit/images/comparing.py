"""Do two images show a guest the same."""

from __future__ import annotations

import re
from functools import partial

import attrs
import trio

from qmpkit.host.chain import Chain
from qmpkit.images.details import info
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed, checked_chain
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.new import raw_size
from qmpkit.images.opening import Opened, opened
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.process.tools import Completed

__all__ = ["Comparison", "compare"]

_SAME, _DIFFERENT = 0, 1  # exit statuses; others are failures
_OFFSET = re.compile(r"Content mismatch at offset (\d+)!")


@attrs.frozen
class Comparison:
    """How two images compare.

    `identical`: a guest reads the same from both; where one is longer, zeros.
    `difference`: byte at which the sector begins that differs first, None when there is
    none.  `same_size`: whether they are equally long.
    """

    identical: bool
    difference: int | None
    same_size: bool


async def compare(
    one: StrPath,
    one_format: str,
    other: StrPath,
    other_format: str,
    *,
    secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Comparison:
    """Compare what two images show, with all that is below them; how they are stored is nothing.

    *secret* opens every encrypted image of both chains.  *allowed*: folders in which all
    files must be that the images name, None for any.  *progress* is told how far it is.

    That they differ is returned, not raised.  `ImageFailed` when one cannot be read or
    *limits* are met (None: memory alone), `ImageInUse` when a QEMU writes to one.
    """
    asked = Asked.of("compare", one)
    second = Asked.of("compare", other)
    with held_keys(secret) as (key,):
        look = partial(_look, (asked, second), (one_format, other_format), key, allowed)
        chains, sizes, (left, right) = await trio.to_thread.run_sync(look)
        # One key and one kind of name are said once, for both.
        formats = left.words if left.fds else (*left.words, "-F", other_format)
        done = await run_qemu_img(
            ["compare", "-p", *formats, "--", left.name, right.name],
            asked,
            limits or limits_of_chain(sum(len(chain.layers) for chain in chains)),
            fds=left.fds,
            on_stdout=percentages(progress) if progress else None,
            well=_compared,
            opens=[file for chain in chains for file in chain.files],
            long=True,
        )
    if progress:
        progress._set(1.0)
    found = _OFFSET.search(done.out)
    identical = done.status.code == _SAME
    if not identical and found is None:
        raise asked.failed(f"qemu-img's answer is not understood: {done.out!r}")
    if found is None:
        return Comparison(identical, None, "size mismatch" not in done.out)
    # At the first difference qemu-img ends, and has not said yet whether the sizes differ.
    lengths = [
        size if size is not None else (await info(path, format=format)).virtual_size
        for path, format, size in (
            (asked.path, one_format, sizes[0]),
            (second.path, other_format, sizes[1]),
        )
    ]
    return Comparison(identical, int(found[1]), lengths[0] == lengths[1])


def _compared(done: Completed) -> bool:
    return done.status.code in (_SAME, _DIFFERENT)


def _look(
    both: tuple[Asked, Asked], formats: tuple[str, str], key: Key | None, allowed: Allowed
) -> tuple[list[Chain], list[int | None], list[Opened]]:
    pairs = zip(both, formats, strict=True)
    chains = [checked_chain(asked, format, allowed) for asked, format in pairs]
    sizes = [_size(asked, chain) for asked, chain in zip(both, chains, strict=True)]
    return chains, sizes, opened(both[0], chains, key)


def _size(asked: Asked, chain: Chain) -> int | None:
    """Bytes that a guest sees, where that is known without qemu-img."""
    top = chain.layers[0]
    if top.format == "raw":
        return raw_size(asked)
    return top.header.size if top.format == "qcow2" else None
