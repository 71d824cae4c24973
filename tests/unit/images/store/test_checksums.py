"""Checksum files as Debian, Ubuntu, Fedora and Alpine write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit.images.store.checksums import Checksum, checksum_of, is_clearsigned, signed_part

SHA256, OTHER256, SHA512 = "a1" * 32, "b2" * 32, "c3" * 64

DEBIAN = f"""\
{"d4" * 64}  debian-12-genericcloud-amd64.json
{SHA512}  debian-12-genericcloud-amd64.qcow2
{"e5" * 64}  debian-12-genericcloud-amd64.qcow2.old
"""
UBUNTU = f"""\
{OTHER256} *ubuntu-24.04-server-cloudimg-amd64.img.manifest
{SHA256} *ubuntu-24.04-server-cloudimg-amd64.img
"""
FEDORA = f"""\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2: 531628032 bytes
SHA256 (Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2) = {SHA256}
# Fedora-Cloud-Base-UEFI-UKI-43-1.6.x86_64.qcow2: 531628032 bytes
SHA256 (Fedora-Cloud-Base-UEFI-UKI-43-1.6.x86_64.qcow2) = {OTHER256}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        (DEBIAN, "debian-12-genericcloud-amd64.qcow2", f"sha512:{SHA512}"),
        (UBUNTU, "ubuntu-24.04-server-cloudimg-amd64.img", f"sha256:{SHA256}"),
        (FEDORA, "Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2", f"sha256:{SHA256}"),
        (FEDORA.replace("\n", "\r\n"), "Fedora-Cloud-Base-UEFI-UKI-43-1.6.x86_64.qcow2", OTHER256),
        (f"{SHA256}  ./disk.img\n", "disk.img", SHA256),
        (f"{SHA256.upper()}  disk.img\n", "disk.img", SHA256),
        (f"\\{SHA256}  a\\\\b\\nc\n", "a\\b\nc", SHA256),
        (f"{SHA256}  disk image.img", "disk image.img", SHA256),
        # The strongest one counts.
        (f"{SHA256}  disk.img\n{SHA512}  disk.img\n", "disk.img", SHA512),
    ],
)
def test_a_sum_is_found(text: str, file: str, expected: str) -> None:
    assert str(checksum_of(text, file)).endswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{'ab' * 16}  disk.img\n",  # MD5
        f"{'ab' * 20}  disk.img\n",  # SHA-1
        f"MD5 (disk.img) = {'ab' * 16}\n",
        f"{SHA256}  other.img\n",
        f"{SHA256}  dir/disk.img\n",
        f"SHA512 (disk.img) = {SHA256}\n",  # the label is another's
        f"{SHA256}\n",  # of whom?
        "<html>404</html>",
    ],
)
def test_no_sum_is_found(text: str) -> None:
    assert checksum_of(text, "disk.img") is None


def test_a_sum_alone() -> None:
    assert checksum_of(f"{SHA512}\n", "disk.qcow2", alone=True) == Checksum("sha512", SHA512)
    assert checksum_of(f"{SHA512}  disk.qcow2\n", "disk.qcow2", alone=True) is not None


def test_two_sums_for_one_file() -> None:
    with pytest.raises(ValueError, match=r"two different sums are stated for 'disk\.img'"):
        checksum_of(f"{SHA256}  disk.img\n{OTHER256} *disk.img\n", "disk.img")
    assert checksum_of(f"{SHA256}  disk.img\n{SHA256}  disk.img\n", "disk.img") is not None


def test_what_stands_outside_of_a_signature_is_not_read() -> None:
    around = f"{OTHER256}  disk.img\n{FEDORA}{OTHER256}  disk.img\n"
    assert is_clearsigned(around)
    assert checksum_of(around, "disk.img") is None
    dashed = FEDORA.replace("# Fedora-Cloud-Base-Generic", f"- -{SHA256}  x\n# F")
    assert f"\n-{SHA256}  x\n" in f"\n{signed_part(dashed)}"


@pytest.mark.parametrize("digits", ["", "a1" * 16, "g1" * 32, "a1" * 33, " " * 64])
def test_what_is_no_sum(digits: str) -> None:
    with pytest.raises(ValueError, match="is no SHA-256, SHA-384 or SHA-512"):
        Checksum.of(digits)


@settings(max_examples=30)
@given(st.text(), st.text(min_size=1, max_size=20))
def test_any_text_is_read(text: str, file: str) -> None:
    """What a server sends instead of a list is no list, and no failure of ours."""
    found = checksum_of(text, file, alone=True)
    assert found is None or len(found.digits) in (64, 96, 128)
