"""Who says what an image is to be: a checksum that is given, or one in a list that may be
signed.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import trio

from qmpkit.errors import ChecksumWrong, PullFailed, SignatureWrong
from qmpkit.images.store.checksums import Checksum, checksum_of, is_clearsigned
from qmpkit.images.store.signatures import verified
from qmpkit.images.store.sources import Source, is_url, without_password
from qmpkit.images.store.web import Web

__all__ = ["Expected", "expected_of"]

_LARGEST = 4 << 20  # bytes of a list


@attrs.frozen
class Expected:
    """The checksum, None when there is none, and in words who states it."""

    checksum: Checksum | None
    vouched: str


async def expected_of(source: Source, web: Web | None) -> Expected:
    """What *source* is expected to be; *web* asks for lists that are somewhere else.

    `SignatureWrong` when a keyring is given and the list is not signed by it;
    `ChecksumWrong` when the list has no sum for the image, or another than is given.
    """
    if not source.checksums:
        return Expected(source.expected, "sha256 as given" if source.expected else "")
    signed = source.keyring is not None
    text = await _fetched(source.checksums, web, signed=signed)
    shown, by = without_password(source.checksums), ""
    if source.keyring is not None:
        text, by = await _signed(source, text, source.keyring, web)
    stated = _stated(source, text)
    if source.expected is not None:
        if stated.algorithm == "sha256" and stated != source.expected:
            why = f"{shown} states another sha256 than is given"
            raise ChecksumWrong(source.shown, why)
        stated = source.expected
    vouched = f"{stated.algorithm} in {shown}"
    return Expected(stated, f"{vouched}, signed by {by}" if by else vouched)


async def _signed(source: Source, text: bytes, ring: Path, web: Web | None) -> tuple[bytes, str]:
    shown = without_password(source.checksums)
    if is_clearsigned(text.decode(errors="replace")):
        found = await verified(shown, text, None, ring)
    else:
        if not source.signature:
            why = "it holds no signature, and none beside it is named"
            raise SignatureWrong(shown, why)
        signature = await _fetched(source.signature, web, signed=True)
        found = await verified(shown, text, signature, ring)
    return found.text, found.by


def _stated(source: Source, text: bytes) -> Checksum:
    shown = without_password(source.checksums)
    file = shown.rpartition("/")[2]
    alone = file.startswith(source.file)  # disk.qcow2.sha512
    try:
        found = checksum_of(text.decode(errors="replace"), source.file, alone=alone)
    except ValueError as error:
        raise ChecksumWrong(source.shown, f"{shown}: {error}") from error
    if found is None:
        why = f"{shown} has no SHA-256, SHA-384 or SHA-512 of {source.file!r}"
        raise ChecksumWrong(source.shown, why, "is it the list that is beside the image?")
    return found


async def _fetched(place: str, web: Web | None, *, signed: bool) -> bytes:
    if is_url(place):
        assert web is not None, "whoever names a URL has a client"
        return await web.small(place, signed=signed)
    try:
        return await trio.to_thread.run_sync(_read, Path(place))
    except OSError as error:
        raise PullFailed(place, error.strerror or str(error), "name another file") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)
