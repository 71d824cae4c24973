"""Real signatures by real keys, judged by gpgv."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from qmpkit.errors import BinaryMissing, SignatureWrong
from qmpkit.images import Store
from qmpkit.images.store.signatures import verified
from tests.unit.images.store.server import Server

SUMS = b"a1" * 32 + b"  disk.img\n"


@attrs.frozen
class Signer:
    home: Path
    keyring: Path

    def gpg(self, *words: str, stdin: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        return subprocess.run(argv, input=stdin, capture_output=True, check=True).stdout


def signer(folder: Path, name: str) -> Signer:
    home = folder / name
    home.mkdir(mode=0o700)
    made = Signer(home, folder / f"{name}.gpg")
    made.gpg("--passphrase", "", "--quick-gen-key", f"{name} <{name}@example.org>", "ed25519")
    made.keyring.write_bytes(made.gpg("--export"))
    return made


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    if shutil.which("gpg") is None or shutil.which("gpgv") is None:
        pytest.skip("needs gpg and gpgv: sudo apt install gpg gpgv")
    folder = Path(tempfile.mkdtemp(prefix="qk-"))  # short: gpg's agent has a socket there
    both = signer(folder, "publisher"), signer(folder, "stranger")
    yield both
    for each in both:
        subprocess.run(["gpgconf", "--homedir", str(each.home), "--kill", "all"], check=False)
    shutil.rmtree(folder)


async def test_a_signature_beside(signers: tuple[Signer, Signer]) -> None:
    publisher, _ = signers
    signature = publisher.gpg("--detach-sign", stdin=SUMS)
    signed = await verified("SUMS", SUMS, signature, publisher.keyring)
    assert signed.text == SUMS
    assert signed.by.startswith("publisher <publisher@example.org> (")
    armored = publisher.gpg("--armor", "--detach-sign", stdin=SUMS)
    assert (await verified("SUMS", SUMS, armored, publisher.keyring)).by == signed.by


async def test_a_signature_inside_covers_what_is_inside(signers: tuple[Signer, Signer]) -> None:
    publisher, _ = signers
    text = publisher.gpg("--clearsign", stdin=SUMS)
    forged = b"b2" * 32 + b"  disk.img\n"
    signed = await verified("SUMS", text, None, publisher.keyring)
    assert signed.text == SUMS
    with pytest.raises(SignatureWrong):
        await verified("SUMS", forged, None, publisher.keyring)
    with pytest.raises(SignatureWrong, match="the text is not what was signed"):
        await verified("SUMS", text.replace(b"a1a1", b"b2b2", 1), None, publisher.keyring)


async def test_what_is_not_signed_so(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    publisher, stranger = signers
    signature = publisher.gpg("--detach-sign", stdin=SUMS)
    with pytest.raises(SignatureWrong, match="the text is not what was signed"):
        await verified("SUMS", SUMS + b"x", signature, publisher.keyring)
    with pytest.raises(SignatureWrong, match="the key that signed is not in the keyring"):
        await verified("SUMS", SUMS, signature, stranger.keyring)
    with pytest.raises(SignatureWrong, match="cannot pull 'SUMS': its signature is not right"):
        await verified("SUMS", SUMS, b"no signature", publisher.keyring)
    with pytest.raises(SignatureWrong, match="cannot be read: No such file"):
        await verified("SUMS", SUMS, signature, tmp_path / "none.gpg")
    armored = tmp_path / "armored.asc"
    armored.write_bytes(publisher.gpg("--armor", "--export"))
    with pytest.raises(SignatureWrong, match=r"armored text\. Cure: gpg --dearmor armored\.asc"):
        await verified("SUMS", SUMS, signature, armored)


async def test_a_pull_by_a_signed_list(
    signers: tuple[Signer, Signer], server: Server, store: Store
) -> None:
    publisher, stranger = signers
    body = b"x" * 512
    url = server.put("/disk.raw", body)
    listed = f"# disk.raw: 512 bytes\nSHA256 (disk.raw) = {hashlib.sha256(body).hexdigest()}\n"
    inside = server.put("/CHECKSUM", publisher.gpg("--clearsign", stdin=listed.encode()))
    beside = server.put("/SHA256SUMS", listed.encode())
    server.put("/SHA256SUMS.gpg", publisher.gpg("--detach-sign", stdin=listed.encode()))
    for lists in (inside, beside):
        image = await store.pull(url, checksums=lists, keyring=publisher.keyring)
        assert image.vouched.startswith(f"sha256 in {lists}, signed by publisher <publisher@")
        with pytest.raises(SignatureWrong, match="the key that signed is not in the keyring"):
            await store.pull(url, checksums=lists, keyring=stranger.keyring)
    # Another line, before or after what is signed, is nobody's word: it is not read.
    forged = b"SHA512 (disk.raw) = " + b"ab" * 64 + b"\n"
    page = server.pages["/CHECKSUM"]
    page.body = forged + page.body + forged
    again = await store.pull(url, checksums=inside, keyring=publisher.keyring, refresh=True)
    assert again.vouched.startswith("sha256 in ")
    text = (await verified("CHECKSUM", page.body, None, publisher.keyring)).text
    assert text.decode() == listed


async def test_without_gpgv(
    signers: tuple[Signer, Signer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publisher, _ = signers
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match="Cure: sudo apt install gpgv"):
        await verified("SUMS", SUMS, b"", publisher.keyring)
