"""How fast an image can be read or written by QEMU's own block layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Secret, held_keys
from qmpkit.images.opening import changeable, readable
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.sizes import to_bytes

__all__ = ["Bench", "bench"]

_SECONDS = re.compile(r"Run completed in (\d+(?:\.\d+)?) seconds")


_MOST = (1 << 31) - 1
_MOST_AT_ONCE = 1 << 30  # bytes, which are in memory


@attrs.frozen
class Bench:
    """What `bench` measured: `requests` of `size` bytes each in `seconds`."""

    requests: int
    size: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Requests in a second; infinite when it took less than a millisecond."""
        return self.requests / self.seconds if self.seconds else float("inf")

    @property
    def bytes_per_second(self) -> float:
        """Bytes in a second; infinite when it took less than a millisecond."""
        return self.per_second * self.size


async def bench(
    path: StrPath,
    format: str,
    *,
    requests: int = 75_000,
    size: int | str = 4096,
    depth: int = 64,
    overwrite: bool = False,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits | None = None,
) -> Bench:
    """Time so many *requests* of *size* bytes, one after the other, *depth* at once.

    They are reads; with *overwrite* they are writes, and what the image holds is lost.
    Past its end it begins anew.  *secret* opens an encrypted image.  *allowed*: folders in
    which all files must be that it names, None for any.

    `SpecInvalid` for numbers that cannot be, `ImageFailed` when qemu-img fails or *limits*
    are met (None: memory alone), `ImageInUse` when a QEMU writes to the image, or to
    overwrite it when one has it open.  Cancellation ends it.
    """
    length = to_bytes(size, "size")
    if faults := list(_faults(requests, length, depth)):
        raise SpecInvalid(faults)
    asked = Asked.of("overwrite" if overwrite else "read", path)
    with held_keys(secret) as (key,):
        look = partial(changeable if overwrite else readable, asked, format, key, allowed)
        chain, image = await trio.to_thread.run_sync(look)
        words = ["bench", "-c", str(requests), "-s", str(length), "-d", str(depth)]
        words += ["-w"] if overwrite else []
        done = await run_qemu_img(
            [*words, *image.words, "--", image.name],
            asked,
            limits or _limits(len(chain.layers), length * depth),
            fds=image.fds,
            opens=chain.files,
            long=True,
        )
    found = _SECONDS.search(done.out)
    if found is None:
        raise asked.failed(f"qemu-img's answer is not understood: {done.out!r}")
    return Bench(requests, length, float(found[1]))


def _faults(requests: int, size: int, depth: int) -> Iterator[Fault]:
    for name, value in (("requests", requests), ("size", size), ("depth", depth)):
        if not 0 < value <= _MOST:
            yield Fault(name, f"is to be 1 to {_MOST}, not {value}")
    if size * depth > _MOST_AT_ONCE:
        yield Fault("depth", f"{depth} times {size} bytes are more than 1 GiB at once")


def _limits(images: int, buffers: int) -> Limits:
    plain = limits_of_chain(images)
    assert plain.memory is not None
    return attrs.evolve(plain, memory=plain.memory + buffers)
