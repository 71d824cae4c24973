"""Is an image's metadata sound, and mending it where it is not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import trio

from qmpkit.host.chain import Chain
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed, refuse_used
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.opening import Opened, readable
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.process.tools import Completed

__all__ = ["CheckReport", "check"]

_CURE = "stop that machine first; what it has not written yet would look like damage"
# Exit statuses of `qemu-img check`.  Errors of the check itself have a report as a rule.
_SOUND, _ERRORS, _CORRUPT, _LEAKS = 0, 1, 2, 3


@attrs.frozen(kw_only=True)
class CheckReport:
    """What `check` found, after repairs; numbers of clusters.

    `errors`: what could not be checked.  `corruptions`: content is or will be lost.
    `leaks`: space taken for nothing, harmless.  The `…_fixed` were mended.
    """

    path: Path
    format: str
    errors: int
    corruptions: int
    leaks: int
    corruptions_fixed: int
    leaks_fixed: int

    @property
    def ok(self) -> bool:
        """Nothing is wrong; leaks are not wrong, they only waste space."""
        return not self.errors and not self.corruptions


async def check(
    path: StrPath,
    format: str,
    *,
    repair: Literal["leaks", "all"] | None = None,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits | None = None,
) -> CheckReport:
    """Check the metadata of the image at *path*, which nobody may have open for writing.

    *repair* "leaks" frees leaked clusters, "all" mends corruptions too, which may make
    it worse: keep a copy.  Repairs change the image in place and need it to be unused.
    *secret* opens an encrypted image.  *allowed*: folders in which all files must be that it
    and its bases name, None for any.  *limits* None: memory alone, 1 GiB and 40 MiB for
    each image of the chain.

    What is found is returned, not raised.  `ImageFailed` when it cannot be checked at
    all (raw images hold nothing to check) or not be mended, `ImageInUse` when a QEMU
    runs on it: what it has not written yet would look like damage.  qemu-img tells no
    progress of a check.
    Cancelled in a repair, the image is as far as the repair was; check it again.
    """
    asked = Asked.of("check" if repair is None else "repair", path)
    words = ["check", "--output=json"]
    if repair is not None:
        words += ["-r", repair]
    with held_keys(secret) as (key,):
        look = partial(_checkable, asked, format, key, allowed, for_writing=repair is not None)
        chain, image = await trio.to_thread.run_sync(look)
        done = await run_qemu_img(
            [*words, *image.words, "--", image.name],
            asked,
            limits or limits_of_chain(len(chain.layers)),
            fds=image.fds,
            well=_reported,
            cure="copy the file before repairing it",
            long=True,
        )
    try:
        return _typed(asked.path, json.loads(done.stdout.decode(errors="replace")))
    except (ValueError, KeyError) as error:
        raise asked.failed(f"qemu-img's answer is not understood: {error!r}") from error


def _reported(done: Completed) -> bool:
    code = done.status.code
    return code in (_SOUND, _CORRUPT, _LEAKS) or (code == _ERRORS and bool(done.stdout.strip()))


def _checkable(
    asked: Asked, format: str, key: Key | None, allowed: Allowed, *, for_writing: bool
) -> tuple[Chain, Opened]:
    """The image, after every reason to refuse."""
    refuse_used(asked, for_writing=for_writing, cure=_CURE)
    return readable(asked, format, key, allowed)


def _typed(image: Path, said: dict[str, int | str]) -> CheckReport:
    def count(name: str) -> int:
        return int(said.get(name, 0))

    return CheckReport(
        path=image,
        format=str(said["format"]),
        errors=int(said["check-errors"]),
        corruptions=count("corruptions"),
        leaks=count("leaks"),
        corruptions_fixed=count("corruptions-fixed"),
        leaks_fixed=count("leaks-fixed"),
    )
