"""What is to be pulled, where from, and who vouches for it: decided before anything is done."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.store.catalogue import catalogue, host_arch, published
from qmpkit.images.store.checksums import Checksum
from qmpkit.images.store.index import NAME
from qmpkit.spec.suggest import suggestion

__all__ = ["Source", "is_url", "resolved", "without_password"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKED = (".xz", ".gz", ".bz2", ".zst")
_IMAGE = (".qcow2", ".img", ".raw", ".qcow")
_SIGNATURE = ".gpg"  # what Ubuntu adds to the name; a clear signature needs no second file


@attrs.frozen(kw_only=True)
class Source:
    """One image that is to be had.

    `where`: its URL, or its absolute path (`local`).  `name`: what it is to be called;
    `format`: as stated, None is to be found out.  `expected`: its sum, when that is known
    beforehand; else `checksums` is a URL or a path of a file of them ("" none), signed in
    `signature` (the same) by a key of `keyring`.  `shipped`: it is of the catalogue.
    """

    where: str
    name: str
    local: bool
    format: str | None
    expected: Checksum | None = None
    checksums: str = ""
    signature: str = ""
    keyring: Path | None = None
    shipped: bool = False

    @property
    def shown(self) -> str:
        """`where`, without a password that may be in it."""
        return self.where if self.local else without_password(self.where)

    @property
    def file(self) -> str:
        """The name of the file, as a list of checksums has it."""
        return self.where.rpartition("/")[2] if self.local else _last(self.where)

    @property
    def key(self) -> str:
        """What stands for it while it is pulled: a short name of a directory."""
        return hashlib.sha256(os.fsencode(self.shown)).hexdigest()[:24]


def without_password(place: str) -> str:
    """A URL as it may be told and kept; a path as it is."""
    if not is_url(place) or "@" not in (parts := urlsplit(place)).netloc:
        return place
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_url(text: str) -> bool:
    """Whether *text* begins as a URL does."""
    return bool(_URL.match(text))


def resolved(
    what: str | os.PathLike[str],
    *,
    name: str | None = None,
    arch: str | None = None,
    format: str | None = None,
    sha256: str | None = None,
    checksums: str | os.PathLike[str] | None = None,
    signature: str | os.PathLike[str] | None = None,
    keyring: str | os.PathLike[str] | None = None,
) -> Source:
    """The source that *what* means; blocking.  `SpecInvalid` when it means none.

    A text without a slash is a name of the catalogue when that has it.
    """
    ring, shipped = None if keyring is None else Path(keyring), _in_catalogue(what)
    if ring is not None and checksums is None and not shipped:
        raise _mistake("a keyring is for signed checksums, and none are named", "name them too")
    if signature is not None and (ring is None or checksums is None):
        raise _mistake("a signature is of checksums, by a key of a keyring", "name both too")
    if arch is not None and not shipped:
        raise _mistake("an architecture is for names of the catalogue", "leave it out")
    if shipped:
        source = _of_catalogue(os.fspath(what), arch or host_arch(), ring)
    else:
        source = _elsewhere(what)
    source = attrs.evolve(
        source,
        name=_checked_name(name or source.name, shipped=source.shipped and name is None),
        format=format or source.format,
        expected=None if sha256 is None else _digits(sha256),
        keyring=ring or source.keyring,
    )
    if checksums is None:
        return source
    sums = _located(checksums)
    sign = _located(signature) if signature is not None else f"{sums}{_SIGNATURE}"
    signed = sign if ring is not None else ""
    return attrs.evolve(source, checksums=sums, signature=signed, keyring=ring)


def _in_catalogue(what: str | os.PathLike[str]) -> bool:
    return isinstance(what, str) and what in catalogue()


def _of_catalogue(name: str, arch: str, ring: Path | None) -> Source:
    entry, image = published(name, arch)
    sums = image.checksums or entry.checksums
    own = Path(entry.keyring)
    # A package of the host has the keys, so they are used without being asked for.
    if ring is None and entry.keyring and own.exists() and shutil.which("gpgv"):
        ring = own
    return Source(
        where=image.url,
        name=name if arch == host_arch() else f"{name}-{arch}",
        local=False,
        format=image.format,
        checksums=urljoin(image.url, sums) if sums else "",
        signature=urljoin(image.url, entry.signature) if entry.signature and ring else "",
        keyring=ring,
        shipped=True,
    )


def _elsewhere(what: str | os.PathLike[str]) -> Source:
    text = os.fspath(what)
    if not text:
        raise _mistake("the name of the image is empty", "name one of the catalogue, or a file")
    if isinstance(what, str) and is_url(text):
        scheme, host = urlsplit(text).scheme.lower(), urlsplit(text).netloc
        if scheme == "file":
            return _of_file(Path(unquote(urlsplit(text).path)))
        if scheme not in ("http", "https") or not host:
            raise _mistake(f"{text!r} is no address to pull from", "http://…, https://… or a file")
        return Source(where=text, name=_plain(_last(text)), local=False, format=None)
    if isinstance(what, str) and "/" not in text and not Path(text).exists():
        hint = suggestion(text, catalogue()) or "see `qmpkit image ls --catalogue`"
        raise _mistake(f"{text!r} is no image of the catalogue, no file and no URL", hint)
    return _of_file(Path(text))


def _of_file(path: Path) -> Source:
    where = path.absolute()
    return Source(where=str(where), name=_plain(where.name), local=True, format=None)


def _last(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _plain(file: str) -> str:
    """A name made of a file's."""
    for endings in (_PACKED, _IMAGE):
        for ending in endings:
            file = file.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9._+-]", "-", file).lstrip("._+-")[:100]


def _checked_name(name: str, *, shipped: bool) -> str:
    if not NAME.fullmatch(name):
        what = f"{name!r} cannot be an image's name" if name else "the image would have no name"
        raise _mistake(what, "--name: letters, digits and . _ + -, a hundred at most")
    if name in catalogue() and not shipped:
        raise _mistake(f"{name!r} is a name of the catalogue", "give it another (--name)")
    return name


def _digits(sha256: str) -> Checksum:
    try:
        found = Checksum.of(sha256.strip().removeprefix("sha256:"))
    except ValueError as error:
        raise _mistake(str(error), "64 hexadecimal digits") from None
    if found.algorithm != "sha256":
        raise _mistake(f"{sha256!r} is a {found.algorithm}", "64 hexadecimal digits")
    return found


def _located(file: str | os.PathLike[str]) -> str:
    text = os.fspath(file)
    if isinstance(file, str) and is_url(text):
        parts = urlsplit(text)
        return unquote(parts.path) if parts.scheme.lower() == "file" else text
    return str(Path(text).absolute())


def _mistake(what: str, cure: str) -> SpecInvalid:
    return SpecInvalid([Fault("", what, cure)])
