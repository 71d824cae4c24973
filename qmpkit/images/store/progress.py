"""How far a pull is: the latest step, for whoever looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import trio

if TYPE_CHECKING:
    from qmpkit.images.store.index import Image

__all__ = ["PullStep", "Pulling", "Stage"]

Stage = Literal["waiting", "checksums", "download", "unpack", "check", "done"]


@attrs.frozen
class PullStep:
    """Where a pull is: `done` of `total` bytes, None when nobody knows how many there are.

    waiting: another program pulls the same; checksums: asking what it is to be;
    download: also reading a local file; unpack: of what was compressed; check: what it is.
    """

    stage: Stage
    done: int = 0
    total: int | None = None


class Pulling:
    """An async iterable of `PullStep`; that of the stage "done" is the last.

    Each iterator begins with the latest step and skips what it was too slow to see.
    """

    def __init__(self) -> None:
        self.step = PullStep("checksums")
        """The latest; may be read at any time."""
        self._image: Image | None = None
        self._changed = trio.Event()

    @property
    def image(self) -> Image:
        """The image, once the block of `Store.pulling` has ended well."""
        assert self._image is not None, "the block ended well"
        return self._image

    def _set(self, stage: Stage, done: int = 0, total: int | None = None) -> None:
        step = PullStep(stage, done, total)
        if step != self.step:
            self.step = step
            self._changed.set()
            self._changed = trio.Event()

    def _finish(self, image: Image) -> None:
        self._image = image
        self._set("done", image.size, image.size)

    async def _mirror(self, other: Pulling) -> None:
        """Tell what *other*, whose download this is too, tells; for ever."""
        async for step in other:
            if step.stage != "done":
                self._set(step.stage, step.done, step.total)

    def __aiter__(self) -> _Look:
        return _Look(self)


class _Look:
    """One who looks; no generator, which a `break` would leave to the garbage collector."""

    def __init__(self, pulling: Pulling) -> None:
        self._pulling = pulling
        self._seen: PullStep | None = None

    def __aiter__(self) -> _Look:
        return self

    async def __anext__(self) -> PullStep:
        if self._seen is not None and self._seen.stage == "done":
            raise StopAsyncIteration
        while self._pulling.step is self._seen:
            await self._pulling._changed.wait()
        await trio.lowlevel.checkpoint()
        self._seen = self._pulling.step
        return self._seen
