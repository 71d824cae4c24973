"""Putting an overlay on another base."""

from __future__ import annotations

from functools import partial

import attrs
import trio

from qmpkit.host.chain import MAX_CHAIN, Chain, Layer, walk_chain
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed, checked_chain, refuse_used
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.new import OVERLAYS, recorded_name
from qmpkit.images.opening import Opened, changeable, opened
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.snapshot_table import refuse_snapshots
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits

__all__ = ["rebase"]


async def rebase(
    path: StrPath,
    format: str,
    base: StrPath | None,
    base_format: str | None = None,
    *,
    unsafe: bool = False,
    secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> None:
    """Put the overlay at *path* (qcow2 or qed) on another *base*, None for none.

    A guest sees the same afterwards: what differs between the old chain and the new is
    first copied into the overlay, each piece safe on disk before the next, and the new
    base's name is written last.  Cancelled, killed, or out of space, the overlay has the
    old base or the new one, and reads the same with either; only space may be taken for
    nothing, and its bitmaps be broken, as after a crash.  It grows by all that differs.
    *progress* is told how far it is.

    *unsafe* writes the name alone, at once: for a base that was moved, whose content
    must be what the old base's is.  Any other makes a broken disk of it.

    *secret* opens every encrypted image of the old chain; an encrypted new base cannot be
    read, so that is *unsafe* or an error.  *allowed*: folders in which all files must be
    that both chains name, None for any.

    `ImageFailed` when a base is missing, would be above itself or has no stated
    *base_format*, when the overlay has snapshots (only the present content is copied, and
    they would show the new base; *unsafe* keeps them), when qemu-img fails or *limits*
    are met (None: memory alone); `ImageInUse` when a QEMU has the overlay open or writes
    to a base.
    """
    asked = Asked.of("rebase", path)
    work = _Work(asked, format, base_format, unsafe, allowed)
    with held_keys(secret) as (key,):
        look = partial(work.look, base, key)
        image, alone, name, chains = await trio.to_thread.run_sync(look)
        limits = limits or limits_of_chain(sum(len(chain.layers) for chain in chains))
        opens = [file for chain in chains for file in chain.files]
        told = percentages(progress) if progress else None
        if not unsafe:
            # Else data that is not on disk yet would be looked for in the new base.
            words = ["rebase", "-p", "-t", "writethrough", *image.words]
            # Told by its options, an image has no place that a name could count from.
            from_here = str(chains[1].layers[0].path) if image.fds and name else name
            words += [*work.base_words(from_here), "--", image.name]
            await run_qemu_img(
                words, asked, limits, fds=image.fds, on_stdout=told, opens=opens, long=True
            )
        if unsafe or (image.fds and name):
            words = ["rebase", "-u", *alone.words, *work.base_words(name), "--", alone.name]
            await run_qemu_img(words, asked, limits, fds=alone.fds, in_place=True)
    if progress:
        progress._set(1.0)


@attrs.frozen
class _Work:
    asked: Asked
    format: str
    base_format: str | None
    unsafe: bool
    allowed: Allowed

    def look(
        self, base: StrPath | None, key: Key | None
    ) -> tuple[Opened, Opened, str, list[Chain]]:
        """The overlay with its bases and without, the new base's name, and the chains.

        After every reason to refuse.
        """
        asked = self.asked
        if self.format not in OVERLAYS:
            raise asked.failed(f"{self.format} images have no base", "convert it to qcow2")
        if base is not None and self.base_format is None:
            raise asked.failed("the format of the new base is not stated", 'base_format="qcow2"')
        if self.unsafe:  # the old base may be gone: it is not opened
            refuse_used(asked, for_writing=True)
            old = Chain(self._top())
            (image,) = opened(asked, [old], key)
        else:
            old, image = changeable(asked, self.format, key, self.allowed)
            refuse_snapshots(asked, self.format)
        (alone,) = opened(asked, [Chain(old.layers[:1])], key)
        if base is None:
            return image, alone, "", [old]
        below = Asked.of("rebase to", base)
        chains = [old, self._new_chain(below)]
        return image, alone, recorded_name(asked.path, below.path), chains

    def _top(self) -> tuple[Layer, ...]:
        walked = walk_chain(self.asked.path, self.format)
        if walked.broken is not None and not walked.layers:
            raise self.asked.failed(walked.broken.why)
        return walked.layers[:1]

    def _new_chain(self, below: Asked) -> Chain:
        assert self.base_format is not None
        asked, base = self.asked, below.path
        new = checked_chain(below, self.base_format, self.allowed)
        found = new.layers[0].header.format or "raw"
        if self.base_format not in ("raw", found):
            what = f"the new base {str(base)!r} is {found}, not {self.base_format}"
            raise asked.failed(what, "state its format")
        if any(layer.path.samefile(asked.path) for layer in new.layers):
            raise asked.failed(f"it is itself below {str(base)!r}", "name a base further down")
        if len(new.layers) == MAX_CHAIN:
            raise asked.failed(f"it would be deeper than {MAX_CHAIN} images", "commit some first")
        if not self.unsafe and any(layer.encrypted for layer in new.layers):
            what = f"the new base {str(base)!r} is encrypted, and qemu-img cannot be told its key"
            raise asked.failed(
                what, "convert it; unsafe=True (--unsafe) if it has the same content"
            )
        return new

    def base_words(self, name: str) -> list[str]:
        return ["-F", str(self.base_format), "-b", name] if name else ["-b", ""]
