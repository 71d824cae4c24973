"""Checksum files as projects publish them.  Pure.

<hex>  <file>               Debian's SHA512SUMS; with * before the name, Ubuntu's SHA256SUMS
SHA256 (<file>) = <hex>     Fedora's CHECKSUM, inside a clear signature
<hex>                       a file for one image alone, as there are beside Alpine's
"""

from __future__ import annotations

import re

import attrs

__all__ = ["Checksum", "checksum_of", "is_clearsigned", "signed_part"]

_ALGORITHMS = {64: "sha256", 96: "sha384", 128: "sha512"}  # by the digits of a sum; no weaker one
_GNU = re.compile(r"(\\?)([0-9a-fA-F]{64,128}) [ *](.+)")
_BSD = re.compile(r"(SHA\d{3}) ?\((.+)\) ?= ?([0-9a-fA-F]{64,128})")
_BARE = re.compile(r"[0-9a-fA-F]{64,128}")
_BEGIN = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"


@attrs.frozen
class Checksum:
    """A sum that an image's publisher states; `algorithm` is hashlib's name of it."""

    algorithm: str
    digits: str

    @classmethod
    def of(cls, digits: str) -> Checksum:
        """The sum with these hexadecimal digits, 64, 96 or 128; ValueError for others."""
        algorithm = _ALGORITHMS.get(len(digits))
        if algorithm is None or not _BARE.fullmatch(digits):
            raise ValueError(f"{digits!r} is no SHA-256, SHA-384 or SHA-512")
        return cls(algorithm, digits.lower())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


def checksum_of(text: str, file: str, *, alone: bool = False) -> Checksum | None:
    """The strongest sum that *text* states for the file of that name; None without one.

    *alone*: the text is about that file only, so a sum without a name is its.
    ValueError when the text states two different sums of one kind for it.
    """
    found: dict[str, Checksum] = {}
    for line in signed_part(text).splitlines():
        sum_ = _in_line(line.strip(), file, alone=alone)
        if sum_ is not None and found.setdefault(sum_.algorithm, sum_) != sum_:
            raise ValueError(f"two different sums are stated for {file!r}")
    return max(found.values(), key=lambda sum_: len(sum_.digits), default=None)


def _in_line(line: str, file: str, *, alone: bool) -> Checksum | None:
    if named := _GNU.fullmatch(line):
        escaped, digits, name = named.groups()
        name = _unescaped(name) if escaped else name
        return _sum(digits) if name.removeprefix("./") == file else None
    if labelled := _BSD.fullmatch(line):
        label, name, digits = labelled.groups()
        found = _sum(digits) if name.removeprefix("./") == file else None
        return found if found is not None and found.algorithm == label.lower() else None
    return _sum(line) if alone and _BARE.fullmatch(line) else None


def _sum(digits: str) -> Checksum | None:
    try:
        return Checksum.of(digits)
    except ValueError:
        return None


def _unescaped(name: str) -> str:
    meant = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda found: meant[found[0]], name)


def is_clearsigned(text: str) -> bool:
    """Whether *text* holds its own signature."""
    return text.startswith(_BEGIN) or f"\n{_BEGIN}" in text


def signed_part(text: str) -> str:
    """The text inside a clear signature, which is not looked at; any other text as it is."""
    if not is_clearsigned(text):
        return text
    _, _, rest = text.replace("\r\n", "\n").partition(_BEGIN)
    _, _, body = rest.partition("\n\n")  # the headers name the hash
    body, _, _ = body.partition(f"\n{_SIGNATURE}")
    return "\n".join(line.removeprefix("- ") for line in body.split("\n"))
