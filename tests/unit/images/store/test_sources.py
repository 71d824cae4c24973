"""What a name, an address or a file means, before anything is asked of anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.images.store import sources
from qmpkit.images.store.catalogue import Entry, Published, host_arch
from qmpkit.images.store.sources import resolved, without_password

URL = "https://example.org/images/disk-1.0%20final.qcow2.xz?at=3"


def test_an_address() -> None:
    source = resolved(URL)
    assert (source.where, source.local, source.format) == (URL, False, None)
    assert source.file == "disk-1.0 final.qcow2.xz"
    assert source.name == "disk-1.0-final"
    assert (source.checksums, source.expected) == ("", None)


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").touch()
    for what in ("disk.img", Path("disk.img"), f"file://{tmp_path}/disk.img"):
        source = resolved(what)
        assert (source.where, source.local) == (f"{tmp_path}/disk.img", True)
        assert (source.name, source.file) == ("disk", "disk.img")
    # A path is a file, whatever the catalogue has.
    assert resolved(Path("debian-12"), name="mine").local


def test_lists_and_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sums = "https://example.org/images/SHA256SUMS"
    plain = resolved(URL, checksums=sums)
    assert (plain.checksums, plain.signature, plain.keyring) == (sums, "", None)
    signed = resolved(URL, checksums=sums, keyring="keys.gpg")
    assert (signed.signature, signed.keyring) == (f"{sums}.gpg", Path("keys.gpg"))
    local = resolved(URL, checksums="SUMS", signature=Path("SUMS.sig"), keyring="keys.gpg")
    assert resolved(URL, checksums="file:///a%20b/SUMS").checksums == "/a b/SUMS"
    assert (local.checksums, local.signature) == (f"{tmp_path}/SUMS", f"{tmp_path}/SUMS.sig")


def test_the_hosts_own_keys_are_used_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "keys.gpg"
    image = Published("https://example.org/x/disk.img", "qcow2")
    entry = Entry(title="", x86_64=image, checksums="S", signature="S.gpg", keyring=str(ring))
    monkeypatch.setattr(sources, "catalogue", lambda: {"x": entry})
    monkeypatch.setattr(sources, "published", lambda name, arch: (entry, image))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert (resolved("x").keyring, resolved("x").signature) == (None, "")
    ring.touch()
    # Who names other sums says who signs them, too.
    assert (resolved("x", checksums="/SUMS").keyring, resolved("x", checksums="/S").signature) == (
        None,
        "",
    )
    assert (resolved("x").keyring, resolved("x").signature) == (ring, "https://example.org/x/S.gpg")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert resolved("x").keyring is None
    assert resolved("x", keyring="/mine.gpg").keyring == Path("/mine.gpg")


def test_a_password_is_not_told() -> None:
    source = resolved("https://me:secret@example.org/disk.img")
    assert "secret" in source.where
    assert source.shown == "https://example.org/disk.img"
    for place in ("/a@b/c", "https://example.org/a@b", "disk@1.img"):
        assert without_password(place) == place


def test_another_architecture_has_another_name() -> None:
    host, *others = ("x86_64", "aarch64")
    if host_arch() != host:
        host, others = "aarch64", ["x86_64"]
    assert resolved("debian-12", arch=host).name == "debian-12"
    assert resolved("debian-12", arch=others[0]).name == f"debian-12-{others[0]}"


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("debain-12", {}, r"no image of the catalogue, no file and no URL \(did you mean"),
        ("ftp://example.org/x.img", {}, "is no address to pull from"),
        ("https:///x.img", {}, "is no address to pull from"),
        ("https://example.org/", {}, "the image would have no name"),
        (URL, {"name": "a/b"}, "'a/b' cannot be an image's name"),
        (URL, {"name": "debian-12"}, "'debian-12' is a name of the catalogue"),
        ("debian-12", {"name": "debian-13"}, "'debian-13' is a name of the catalogue"),
        (URL, {"sha256": "a1" * 64}, "is a sha512"),
        (URL, {"sha256": "a1"}, "is no SHA-256"),
        (URL, {"keyring": "keys.gpg"}, "a keyring is for signed checksums"),
        (URL, {"signature": "S.gpg", "checksums": "S"}, "a signature is of checksums, by a key"),
        ("debian-12", {"signature": "S.gpg", "keyring": "k"}, "a signature is of checksums, by"),
        (URL, {"arch": "aarch64"}, "an architecture is for names of the catalogue"),
        ("", {}, "the name of the image is empty"),
    ],
)
def test_mistakes(what: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(SpecInvalid, match=said):
        resolved(what, **options)
