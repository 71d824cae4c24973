"""What is in the store: a record for each image, names for some.  Blocking.

Whatever changes something here is called with the store's lock held.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import attrs

from qmpkit.errors import Fault, JournalNewer, SpecInvalid
from qmpkit.images.store.layout import Layout
from qmpkit.process.durable import DRAFT, sync, write_durably
from qmpkit.spec.suggest import suggestion

__all__ = [
    "NAME",
    "Format",
    "Image",
    "Name",
    "find",
    "forget",
    "give_name",
    "images",
    "in_place",
    "names",
]
__all__ += ["publish", "write_record"]

SCHEMA = 1
_LEAST_DIGITS = 8  # of a digest that is shortened
_MODE = 0o444
Format = Literal["qcow2", "raw"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_log = logging.getLogger("qmpkit.images")
_UNKNOWN = "the %s %s in the image store is not understood (%r): pull its image again"


@attrs.frozen(kw_only=True)
class Image:
    """An image in the store, to be read only: make overlays on it.

    `digest`: the SHA-256 of the file `path`, 64 digits.  `format`: qcow2 or raw.
    `size`: bytes of the file; `virtual_size`: bytes that a guest sees.
    `source`: where it came from, a URL or a path; `pulled`: when.  `names`: what it is
    called here.  `checksums`: of what was pulled, by hashlib's names, before it was
    unpacked.  `vouched`: what says that it is what its publisher made ("sha512 in <URL>,
    signed by …"), "" when nothing does.
    """

    digest: str
    path: Path
    format: Format
    size: int
    virtual_size: int
    source: str
    pulled: datetime
    names: tuple[str, ...] = ()
    checksums: Mapping[str, str] = attrs.field(factory=dict)
    vouched: str = ""

    @property
    def name(self) -> str:
        """Its name; without one the first digits of its digest."""
        return self.names[0] if self.names else self.digest[:12]


@attrs.frozen
class Name:
    """What a name means: the image with that `digest`, as it was had from `source`.

    `etag`: by which a server knows it again.  `told`: when it was last pulled or found
    to be still the same, in seconds since 1970.
    """

    digest: str
    source: str
    etag: str
    told: float


def images(layout: Layout) -> tuple[Image, ...]:
    """Every image, the latest first.  `JournalNewer` for a record of a later qmpkit."""
    called: dict[str, list[str]] = {}
    for name, meant in names(layout).items():
        called.setdefault(meant.digest, []).append(name)
    found = list(_records(layout, called))
    return tuple(sorted(found, key=lambda image: (image.pulled, image.digest), reverse=True))


def names(layout: Layout) -> dict[str, Name]:
    """What every name means, sorted by name."""
    found = {}
    with suppress(FileNotFoundError):
        for path in sorted(layout.names.iterdir()):
            ours = NAME.fullmatch(path.name) and not path.name.endswith(DRAFT)
            if ours and (meant := _meant(path)) is not None:
                found[path.name] = meant
    return found


def _meant(path: Path) -> Name | None:
    try:
        return Name(**json.loads(path.read_bytes()))
    except FileNotFoundError:  # removed in this moment
        return None
    except (ValueError, TypeError, IsADirectoryError) as error:
        _log.warning(_UNKNOWN, "name", path, error)
        return None


def _records(layout: Layout, called: Mapping[str, list[str]]) -> Iterator[Image]:
    with suppress(FileNotFoundError):
        for path in layout.records.iterdir():
            if path.suffix == ".json":
                with suppress(FileNotFoundError):  # removed in this moment
                    image = _read(layout, path)
                    if image is not None:
                        yield attrs.evolve(image, names=tuple(called.get(image.digest, ())))


def _read(layout: Layout, path: Path) -> Image | None:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        if data["schema"] > SCHEMA:
            raise JournalNewer(str(path), data["schema"])
        return _from_dict(layout, data)
    except (ValueError, KeyError, TypeError, IsADirectoryError) as error:
        _log.warning(_UNKNOWN, "record", path, error)
        return None


def _from_dict(layout: Layout, data: dict[str, Any]) -> Image:
    if data["format"] not in get_args(Format):
        raise ValueError(f"the format {data['format']!r} is none of the store's")
    return Image(
        digest=data["digest"],
        path=layout.blob(data["digest"], data["format"]),
        format=data["format"],
        size=int(data["size"]),
        virtual_size=int(data["virtual_size"]),
        source=str(data["source"]),
        pulled=datetime.fromtimestamp(float(data["pulled"]), UTC),
        checksums=dict(data["checksums"]),
        vouched=str(data["vouched"]),
    )


def _to_dict(image: Image) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "digest": image.digest,
        "format": image.format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "source": image.source,
        "pulled": image.pulled.timestamp(),
        "checksums": dict(image.checksums),
        "vouched": image.vouched,
    }


def find(layout: Layout, name: str) -> Image:
    """The image of that name, or of that digest (eight digits or more; `sha256:` in front).

    `SpecInvalid` when there is none, or more than one digest begins so.
    """
    every = images(layout)
    for image in every:
        if name in image.names:
            return image
    digits = name.removeprefix("sha256:").lower()
    if len(digits) >= _LEAST_DIGITS:
        begin_so = [image for image in every if image.digest.startswith(digits)]
        if len(begin_so) == 1:
            return begin_so[0]
        if begin_so:
            raise SpecInvalid([Fault("", f"{len(begin_so)} images begin with {name!r}")])
    known = [name for image in every for name in image.names]
    hint = suggestion(name, known) or "what is there is told by `qmpkit image ls`"
    raise SpecInvalid([Fault("", f"there is no image {name!r} in the store", hint)])


def publish(
    layout: Layout, draft: Path, image: Image, name: str, meant: Name, *, replace: bool
) -> None:
    """Let *draft*, which is safe on disk, be the store's *image*, called *name*.

    One with the same content stays, but with *replace*: it may be damaged.  Raises OSError;
    what was not there before is not there then either.
    """
    new = not os.path.lexists(layout.record(image.digest))
    draft.chmod(_MODE)
    try:
        if new or replace or not in_place(image):
            draft.rename(image.path)
            sync(layout.blobs)
        else:
            draft.unlink()
        write_record(layout, _joined(layout, image))
        give_name(layout, name, meant)
    except OSError:
        if new:
            with suppress(OSError):
                forget(layout, image.digest, image.path)
        raise


def _joined(layout: Layout, image: Image) -> Image:
    """*image* with what is known of the same content already: what vouches for it stays."""
    old = next((each for each in images(layout) if each.digest == image.digest), None)
    if old is None:
        return image
    image = attrs.evolve(image, checksums={**old.checksums, **image.checksums})
    if old.vouched and not image.vouched:
        return attrs.evolve(image, vouched=old.vouched, source=old.source, pulled=old.pulled)
    return image


def in_place(image: Image) -> bool:
    """Whether its file is there, in its length; what is in it `Store.verify` looks at."""
    with suppress(FileNotFoundError):
        return image.path.lstat().st_size == image.size
    return False


def write_record(layout: Layout, image: Image) -> None:
    """Put down what is known of *image*, but for its names; raises OSError."""
    write_durably(layout.record(image.digest), json.dumps(_to_dict(image), indent=1))


def give_name(layout: Layout, name: str, meant: Name) -> None:
    """Let *name* mean that; raises OSError."""
    write_durably(layout.names / name, json.dumps(attrs.asdict(meant)))


def forget(layout: Layout, digest: str, path: Path) -> None:
    """Take an image out of the store: names, record, its file *path*, in this order; OSError."""
    for name, meant in names(layout).items():
        if meant.digest == digest:
            (layout.names / name).unlink(missing_ok=True)
    sync(layout.names)
    layout.record(digest).unlink(missing_ok=True)
    sync(layout.records)
    path.unlink(missing_ok=True)
    shutil.rmtree(layout.uses / digest, ignore_errors=True)
