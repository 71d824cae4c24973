"""The images below an image, by their headers; nothing is run for that.  Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from qmpkit.host.headers import Header, backing_path, data_path, read_header

__all__ = [
    "MAX_CHAIN",
    "Broken",
    "Chain",
    "Folders",
    "Layer",
    "foreign_extent",
    "inside",
    "walk_chain",
]

MAX_CHAIN = 200
"""Images in one chain, the top included.

QEMU opens every one of them, each with its descriptor and its caches, in time that grows
with the square of their number: 200 take it 0.8 s, 1,000 take 15 s.
"""

_REBASE_HINT = "put it back, or name another with qemu-img rebase -u"
_SHORTEN_HINT = "shorten it with qemu-img rebase or qemu-img commit"

_COPY_HINT = "copy it with qemu-img convert, if you trust the image"

_FORMATS = (
    "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc",
    "parallels", "luks", "dmg", "bochs", "cloop", "host_device",
)  # fmt: skip

FileId = tuple[int, int]
Folders = Sequence[str | os.PathLike[str]]


@attrs.frozen
class Layer:
    """One image of a chain: where it is, its format as stated or found, its header."""

    path: Path
    format: str
    header: Header

    @property
    def encrypted(self) -> bool:
        """Whether its content can be read only with a secret."""
        return self.format == "luks" or (
            self.format == self.header.format and self.header.encrypted
        )

    @property
    def data_file(self) -> Path | None:
        """The file that its content is in, when that is one of its own."""
        return data_path(self.header.data_file) if self.format == self.header.format else None


@attrs.frozen
class Broken:
    """Why a chain cannot be followed to its end: which file, what is wrong, what helps."""

    path: Path
    why: str
    cure: str = ""


@attrs.frozen
class Chain:
    """The layers from the top down, and what is wrong with the chain.

    It ends at a reference that is no plain file (`nbd://…`, `json:…`, `fat:…`): QEMU would
    ask a host, or read a directory, because an image says so; and at a file outside the
    folders that are allowed.  `outside` names it.
    """

    layers: tuple[Layer, ...]
    broken: Broken | None = None
    outside: Broken | None = None

    @property
    def files(self) -> list[Path]:
        """Every file that is opened for it: the images, and their data files."""
        named = [path for layer in self.layers for path in (layer.path, layer.data_file)]
        return [path for path in named if path is not None]


def walk_chain(image: Path, format: str | None = None, allowed: Folders | None = None) -> Chain:
    """Follow the bases below *image*; *format* None: what its header says.

    A base is taken in the format its overlay records, so a raw base has no base,
    whatever its first bytes say.  At most `MAX_CHAIN` files are read.
    *allowed*: folders in one of which each file must be that an image names (None: anywhere),
    with links followed; not *image* itself, which you name.
    Never raises: what cannot be read is `broken`.
    """
    layers: list[Layer] = []
    seen: dict[FileId, Path] = {}
    while True:
        try:
            header, identity = _read(image, format)
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            return Chain(tuple(layers), _unreadable(layers, image, reason))
        if identity in seen:
            return Chain(tuple(layers), _loop(layers, image))
        if len(layers) == MAX_CHAIN:
            return Chain(tuple(layers), _too_deep(layers))
        seen[identity] = image
        layers.append(Layer(image, format or header.format or "raw", header))
        if layers[-1].format != header.format:
            return Chain(tuple(layers))
        if (unclear := _unclear_data(image, header.data_file)) is not None:
            return Chain(tuple(layers), unclear)
        # First whether it may be looked at: what is said of a missing file is a look, too.
        outside = next(_outside(image, header, allowed), None)
        if outside is None and (broken := _lacks_data(image, header.data_file)) is not None:
            return Chain(tuple(layers), broken)
        base = backing_path(image, header.backing) if header.backing else None
        if base is None or outside is not None:
            return Chain(tuple(layers), outside=outside)
        image, format = base, header.backing_format


def _read(image: Path, format: str | None) -> tuple[Header, FileId]:
    found = image.stat()
    if stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        # Opening alone may do something: /dev/watchdog resets the host.
        raise ValueError("neither a file nor a block device")
    return read_header(image, format), (found.st_dev, found.st_ino)


def _outside(image: Path, header: Header, folders: Folders | None) -> Iterator[Broken]:
    """What an image names that is no plain file, or none in these folders."""
    if header.data_file:
        path = data_path(header.data_file)
        yield from _no_file(image, "the data file", header.data_file, path, folders, _COPY_HINT)
    if (extent := foreign_extent(image, header, folders)) is not None:
        yield extent
    if header.backing and (unsound := _unsound_format(image, header, folders)) is not None:
        yield unsound
    if header.backing:
        rebase = f"name a file: qemu-img rebase -u -F FORMAT -b BASE {str(image)!r}"
        cure = f"{rebase}; or, if you trust it, run it as a Disk of a spec"
        path = backing_path(image, header.backing)
        yield from _no_file(image, "the base", header.backing, path, folders, cure)


def _unsound_format(image: Path, header: Header, folders: Folders | None) -> Broken | None:
    """Why the base's format, as recorded, is not to be trusted."""
    cure = f"record it: qmpkit image rebase --unsafe {str(image)!r} BASE --base-format FORMAT"
    recorded, base = header.backing_format, f"the base {header.backing!r} of {str(image)!r}"
    if not recorded and folders is not None:  # QEMU would guess, and its guest may have written it
        return Broken(image, f"the format of {base} is not recorded", cure)
    if (
        recorded and recorded not in _FORMATS
    ):  # a driver that would take the name for something else
        return Broken(image, f"the format of {base} is {recorded!r}, which is no image's", cure)
    return None


def foreign_extent(image: Path, header: Header, folders: Folders | None) -> Broken | None:
    """An extent of a vmdk that is no plain file, or none in *folders* (None: anywhere).

    QEMU opens extents even to say what the image is.
    """
    found = (
        _no_file(image, "the extent", name, backing_path(image, name), folders, _COPY_HINT)
        for name in header.extents
    )
    return next((broken for one in found for broken in one), None)


def _no_file(
    image: Path, what: str, name: str, path: Path | None, folders: Folders | None, cure: str
) -> Iterator[Broken]:
    if path is None:
        yield Broken(image, f"{what} {name!r} of {str(image)!r} is no plain file", cure)
    elif folders is not None and not inside(path, folders):
        why = f"{what} {name!r} of {str(image)!r} is outside the allowed folders"
        yield Broken(image, why, f"if you trust the image, allow {str(path.parent)!r} too")


def inside(path: Path, folders: Folders) -> bool:
    """Whether *path* is below one of *folders*, wherever its links lead."""
    try:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)
    except (OSError, ValueError):
        return False


def _unclear_data(image: Path, name: str) -> Broken | None:
    """A relative name leads to another file in each directory that QEMU is started in."""
    if not name or data_path(name) is not None or backing_path(image, name) is None:
        return None
    why = f"the data file {name!r} of {str(image)!r} has no absolute path"
    cure = f"record where it is: qmpkit image amend {str(image)!r} --data-file FILE"
    return Broken(image, f"{why}, and QEMU would look in its working directory", cure)


def _lacks_data(image: Path, name: str) -> Broken | None:
    """The content of a qcow2 image may be in a file of its own."""
    data = data_path(name)
    if not name or data is None:
        return None
    what, cure = f"the data file {str(data)!r} of {str(image)!r}", "put it back"
    try:
        mode = data.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and not data.is_symlink()
        return Broken(image, f"{what} {'does not exist' if missing else 'cannot be read'}", cure)
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return Broken(image, f"{what} is neither a file nor a disk", "name one")
    if not os.access(data, os.R_OK, effective_ids=True):
        return Broken(image, f"{what} cannot be read", cure)
    return None


def _unreadable(layers: list[Layer], image: Path, reason: str) -> Broken:
    if not layers:
        return Broken(image, reason)
    above = layers[-1].path
    base = f"the base {str(image)!r} of {str(above)!r}"
    if reason == "no such file or directory":
        return Broken(above, f"{base} does not exist", _REBASE_HINT)
    return Broken(above, f"{base} cannot be read: {reason}", _REBASE_HINT)


def _loop(layers: list[Layer], image: Path) -> Broken:
    why = f"the bases of {str(layers[0].path)!r} form a loop at {str(image)!r}"
    above = str(layers[-1].path)
    return Broken(layers[-1].path, why, f"name the true base: qemu-img rebase -u -b BASE {above!r}")


def _too_deep(layers: list[Layer]) -> Broken:
    why = f"the chain of {str(layers[0].path)!r} is deeper than {MAX_CHAIN} images"
    return Broken(layers[-1].path, why, _SHORTEN_HINT)
