"""qemu-img: run with limits, its failures in words that say what to do."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from qmpkit._trio import finished_within
from qmpkit.errors import BinaryMissing, ImageFailed, ImageInUse
from qmpkit.host.holders import holders_of
from qmpkit.host.tools import qemu_img
from qmpkit.images.turns import turn
from qmpkit.process.limits import Limits
from qmpkit.process.tools import Completed, run
from qmpkit.spec.sizes import GIB, MIB, format_size

__all__ = ["INFO_LIMITS", "WRITE_LIMITS", "Asked", "cure_of", "limits_of_chain", "run_qemu_img"]

INFO_LIMITS = Limits(cpu=30, memory=1 * GIB, time=120)
"""What reading an image's metadata may take: milliseconds and megabytes of a sound one."""

WRITE_LIMITS = Limits(memory=1 * GIB)
"""What making or changing one may take: as long as its size needs."""

_CACHES = 40 * MIB  # of metadata, for each open image of a large disk

# What the kernel says, through qemu-img or to ourselves, and what qemu-img says.
_CURES = {
    "No space left on device": "free some space there, or choose another place",
    "Disk quota exceeded": "free some of the quota, or choose another place",
    "Permission denied": "give this user the permission, or choose another place",
    "Operation not permitted": "give this user the permission, or choose another place",
    "Read-only file system": "choose another place",
    "Too many levels of symbolic links": "the link leads in a circle: name the file itself",
    "File name too long": "choose a shorter name",
    "Too many open files": "raise the limit on open files: ulimit -n",
    "Not a directory": "a part of the path is a file: choose another place",
    "Image is not in": "state the format that `qmpkit image info` shows",
    "Could not open backing": "put the base back, or name another with qemu-img rebase -u",
    "Unknown file format": "state raw, qcow2, vmdk, vdi, vhdx or vpc",
    "Unknown driver": "state raw, qcow2, vmdk, vdi, vhdx or vpc",
    "--shrink": "say shrink=True if what is beyond the new end may be lost",
    "does not support checks": "only formats with metadata can be checked, as qcow2",
    "Image is corrupt": "copy the file, then qmpkit image check --repair all",
    "active dirty bitmaps": "remove its bitmaps first: they would not know of the change",
    "requires refcount_bits=16": "say refcount_bits=16 (--refcount-bits 16), too",
    "only active keyslot": "add another secret first: without any nobody reads it again",
    "active keyslots match": "add another secret first: without any nobody reads it again",
    "all keyslots are in use": "remove one first",
    "Refusing to overwrite active keyslot": "remove it first, or leave the slot out",
    "No keyslots match": "`qmpkit image key list` shows the slots that are taken",
    "accurate CPU usage": "try again: this host was too busy to time the secret",
    "Invalid password": "give the secret that it was made with",
}
_OUT_OF_MEMORY = ("allocate memory", "failed to allocate", "could not allocate", "failed to map")
_NO_DELETION = "Error when deleting file /proc/self/fd/"
_MOST_LINES = 8  # of what it says at the beginning, and at the end; a damaged image has thousands
# Of a new encrypted image it measures what a secret's test takes, before it writes anything;
# where the CPU's time is counted in ticks, that fails now and then.
_UNMEASURED = "Unable to get accurate CPU usage"
_TRIES = 5
_FINISH_GRACE = 5.0  # seconds that a change in place has to end in order, once it is cancelled
# An image that was told by its options is told to people by its name.
_OPTIONS = re.compile(
    r"driver=\w+,file\.driver=\w+,file\.filename=((?:[^,]|,,)+)"
    r"(?:,[\w.-]+=key\d+|,(?:data-file|backing)\.[\w.]+=(?:[^,']|,,)+)*"
)
_ABORTS = (signal.SIGABRT, signal.SIGTRAP, signal.SIGSEGV)


def limits_of_chain(images: int) -> Limits:
    """What opening and copying that many images may take."""
    return Limits(memory=1 * GIB + images * _CACHES)


@attrs.frozen
class Asked:
    """What an error names: `doing` ("create"), to which image; `draft` is its name meanwhile."""

    doing: str
    path: Path
    draft: str = ""

    def __attrs_post_init__(self) -> None:
        if "\0" in str(self.path):
            raise self.failed("a file's name cannot hold a NUL")

    @classmethod
    def of(cls, doing: str, path: str | os.PathLike[str]) -> Asked:
        """With *path* made absolute, so that a colon in it means nothing to qemu-img."""
        try:
            return cls(doing, Path(path).absolute())
        except OSError as error:  # the working directory is gone
            raise cls(doing, Path(path)).failed_by(error) from error

    def failed(self, said: str, cure: str = "") -> ImageFailed:
        """The error, to be raised."""
        return ImageFailed(str(self.path), self.doing, said, cure)

    def failed_by(self, error: OSError) -> ImageFailed:
        """What the kernel refused, as the error to be raised, with its cure."""
        said = error.strerror or str(error)
        return self.failed(said, cure_of(said))


def _success(done: Completed) -> bool:
    return done.status.success


async def run_qemu_img(
    words: Sequence[str],
    asked: Asked,
    limits: Limits,
    *,
    fds: Mapping[int, int] | None = None,
    on_stdout: Callable[[bytes], object] | None = None,
    well: Callable[[Completed], bool] = _success,
    opens: Sequence[Path] = (),
    cure: str = "",
    long: bool = False,
    in_place: bool = False,
) -> Completed:
    """Run qemu-img; what is not *well* is `ImageFailed` or `ImageInUse`.

    *opens*: the images besides that of *asked* that it may find in use.
    *cure*: what helps when nothing better is known.
    *long*: it reads or writes a whole image, and waits for its turn among those.
    Raises `BinaryMissing` without qemu-img.  Cancellation kills it; a change *in_place*
    gets 5 s to end in order before.
    """
    argv = ["qemu-img", *words]
    grace = _FINISH_GRACE if in_place else 0.0
    try:
        async with turn(long=long), finished_within(grace):
            for _ in range(_TRIES):
                done = await run(argv, fds=fds, on_stdout=on_stdout, limits=limits, name="qemu-img")
                if _UNMEASURED not in done.err:
                    break
    except BinaryMissing:
        await trio.to_thread.run_sync(qemu_img)  # which knows the package
        raise
    if well(done) and not done.timed_out:
        return done
    if " lock" in done.err and "Failed to get" in done.err:
        raise await trio.to_thread.run_sync(_in_use, asked, opens)
    raise _exceeded(done, asked, limits) or _failed(done, asked, cure)


def _failed(done: Completed, asked: Asked, cure: str) -> ImageFailed:
    # A draft without a name cannot be deleted, and vanishes by itself.
    lines = [line.removeprefix("qemu-img: ") for line in done.err.splitlines()]
    said = _bounded([line for line in lines if not line.startswith(_NO_DELETION)]).strip()
    said = said or f"qemu-img ended with {done.status}"
    if asked.draft:
        said = said.replace(asked.draft, str(asked.path))
    said = _OPTIONS.sub(lambda found: found[1].replace(",,", ","), said)
    return asked.failed(said, cure_of(said) or cure)


def _bounded(lines: Sequence[str]) -> str:
    left_out = len(lines) - 2 * _MOST_LINES
    if left_out <= 0:
        return "\n".join(lines)
    begin, end = lines[:_MOST_LINES], lines[-_MOST_LINES:]
    return "\n".join([*begin, f"… {left_out} lines more …", *end])


def cure_of(said: str) -> str:
    """What helps against what the kernel or qemu-img said; "" when nothing is known."""
    said = said.lower()
    return next((cure for text, cure in _CURES.items() if text.lower() in said), "")


def _in_use(asked: Asked, opens: Sequence[Path]) -> ImageInUse:
    """Of the images it would open, qemu-img does not say which one it is."""
    why = "another process has it or one of its bases open"
    for path in (asked.path, *opens):
        # We may have it open ourselves, to replace it.
        holders = [holder for holder in holders_of(path) if holder.pid != os.getpid()]
        if holders:
            which = "it" if path == asked.path else repr(str(path))
            why = f"{', '.join(map(str, holders))} has {which} open"
            break
    return ImageInUse(str(asked.path), asked.doing, why, "stop that machine first")


def _exceeded(done: Completed, asked: Asked, limits: Limits) -> ImageFailed | None:
    """The limit that ended it, where the status or the message tells."""
    if done.timed_out:
        return asked.failed(f"qemu-img took more than {limits.time:g} s", _raise("time"))
    if limits.cpu is not None and done.status.signal == signal.SIGXCPU:
        return asked.failed(f"qemu-img used more than {limits.cpu:g} s of CPU", _raise("cpu"))
    if limits.file_size is not None and _too_large(done):
        size = format_size(limits.file_size)
        return asked.failed(f"a file grew to more than {size}", _raise("file_size"))
    if limits.memory is not None and _out_of_memory(done):
        size = format_size(limits.memory)
        return asked.failed(f"qemu-img wanted more than {size} of memory", _raise("memory"))
    return None


def _raise(name: str) -> str:
    return f"if you trust the image, raise limits.{name}"


def _too_large(done: Completed) -> bool:
    return done.status.signal == signal.SIGXFSZ or "File too large" in done.err


def _out_of_memory(done: Completed) -> bool:
    said = done.err.lower()
    return done.status.signal in _ABORTS or any(text in said for text in _OUT_OF_MEMORY)
