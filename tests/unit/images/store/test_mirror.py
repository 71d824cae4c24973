"""Every image of the catalogue, pulled from a server that has the files as its project lays
them out: the list of sums in that project's form, signed as it signs.

The projects' own servers are not asked: what is tested is the way, not the addresses.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import attrs
import pytest

from qmpkit.errors import ChecksumWrong, SignatureWrong
from qmpkit.images import Store
from qmpkit.images.store import catalogue, sources
from qmpkit.images.store.catalogue import Entry, Published, host_arch
from tests.sizes import MIRRORED
from tests.unit.images.store.server import Server
from tests.unit.images.store.test_signatures import Signer, signer

pytestmark = pytest.mark.usefixtures("spawner")

ALL = [
    (name, arch)
    for name, entry in catalogue.catalogue().items()
    for arch in entry.architectures
    if arch in MIRRORED
]


def digits(body: bytes, algorithm: str) -> str:
    return hashlib.new(algorithm, body).hexdigest()


def debian(body: bytes, file: str) -> str:
    return f"{digits(b'other', 'sha512')}  other.raw\n{digits(body, 'sha512')}  {file}\n"


def ubuntu(body: bytes, file: str) -> str:
    return f"{digits(b'other', 'sha256')} *other.img\n{digits(body, 'sha256')} *{file}\n"


def fedora(body: bytes, file: str) -> str:
    return f"# {file}: {len(body)} bytes\nSHA256 ({file}) = {digits(body, 'sha256')}\n"


def alpine(body: bytes, file: str) -> str:
    return f"{digits(body, 'sha512')}\n"


FORMS: dict[str, Callable[[bytes, str], str]] = {
    "debian": debian,
    "ubuntu": ubuntu,
    "fedora": fedora,
    "alpine": alpine,
}


@attrs.frozen
class Mirror:
    """The catalogue as it would be if `server` were the host of every address in it."""

    server: Server
    signer: Signer

    def path(self, url: str) -> str:
        return "/" + url.removeprefix("https://")

    def local(self, url: str) -> str:
        return self.server.url(self.path(url)) if url.startswith("https://") else url

    def entry(self, entry: Entry) -> Entry:
        moved: dict[str, Any] = {
            arch: attrs.evolve(made, url=self.local(made.url), checksums=self.local(made.checksums))
            for arch in entry.architectures
            if isinstance(made := getattr(entry, arch), Published)
        }
        ring = str(self.signer.keyring) if entry.keyring else ""
        return attrs.evolve(entry, keyring=ring, **moved)

    def publish(self, name: str, arch: str, body: bytes) -> str:
        """Lay out what the project does for that image; where its sums are."""
        entry = catalogue.catalogue()[name]
        made: Published = getattr(entry, arch)
        project, file = name.partition("-")[0], made.url.rpartition("/")[2]
        sums = FORMS[project](body, file).encode()
        where = urljoin(made.url, made.checksums or entry.checksums)
        if project == "fedora":  # its own server sends on to one of many
            there = self.server.put(f"/mirror/{file}", body)
            self.server.put(self.path(made.url), b"", moved=there)
            sums = self.signer.gpg("--clearsign", stdin=sums)
        else:
            self.server.put(self.path(made.url), body)
        self.server.put(self.path(where), sums)
        if entry.signature:
            signature = self.signer.gpg("--detach-sign", stdin=sums)
            self.server.put(self.path(urljoin(made.url, entry.signature)), signature)
        return self.server.url(self.path(where))


@pytest.fixture(scope="module")
def publisher() -> Iterator[Signer]:
    if shutil.which("gpg") is None or shutil.which("gpgv") is None:
        pytest.skip("needs gpg and gpgv: sudo apt install gpg gpgv")
    folder = Path(tempfile.mkdtemp(prefix="qk-"))  # short: gpg's agent has a socket there
    made = signer(folder, "publisher")
    yield made
    subprocess.run(["gpgconf", "--homedir", str(made.home), "--kill", "all"], check=False)
    shutil.rmtree(folder)


@pytest.fixture
def mirror(server: Server, publisher: Signer, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    shipped = catalogue.catalogue()
    made = Mirror(server, publisher)
    local = {name: made.entry(entry) for name, entry in shipped.items()}
    monkeypatch.setattr(sources, "catalogue", lambda: local)
    monkeypatch.setattr(
        sources, "published", lambda name, arch: (local[name], getattr(local[name], arch))
    )
    return made


@pytest.mark.parametrize(("name", "arch"), ALL)
async def test_an_image(name: str, arch: str, mirror: Mirror, store: Store, qcow2: bytes) -> None:
    sums = mirror.publish(name, arch, qcow2)
    image = await store.pull(name, arch=arch)
    assert image.path.read_bytes() == qcow2
    assert image.name == (name if arch == host_arch() else f"{name}-{arch}")
    algorithm = "sha256" if name.startswith(("ubuntu", "fedora")) else "sha512"
    signed = ", signed by publisher" if name.startswith("ubuntu") else ""
    assert image.vouched.startswith(f"{algorithm} in {sums}{signed}")
    asked = [path for path, _ in mirror.server.asked]
    assert await store.pull(name, arch=arch) == image
    again = [path for path, _ in mirror.server.asked[len(asked) :]]
    assert not any(path.endswith((".img", ".qcow2")) for path in again)


@pytest.mark.parametrize("name", ["debian-12", "ubuntu-24.04", "fedora-43", "alpine-3.24"])
async def test_another_image(name: str, mirror: Mirror, store: Store, qcow2: bytes) -> None:
    mirror.publish(name, "x86_64", qcow2)
    pages = [page for path, page in mirror.server.pages.items() if page.body == qcow2]
    for page in pages:
        page.body = qcow2[:-1] + b"!"
    with pytest.raises(ChecksumWrong):
        await store.pull(name, arch="x86_64")
    assert await store.images() == ()


async def test_fedoras_sums_and_their_signature(
    mirror: Mirror, store: Store, qcow2: bytes, publisher: Signer
) -> None:
    sums = mirror.publish("fedora-43", "x86_64", qcow2)
    image = await store.pull("fedora-43", arch="x86_64", keyring=publisher.keyring)
    assert ", signed by publisher" in image.vouched
    page = mirror.server.pages[sums.removeprefix(mirror.server.address)]
    page.body = page.body.replace(b" bytes", b" octets")
    with pytest.raises(SignatureWrong):
        await store.pull("fedora-43", arch="x86_64", keyring=publisher.keyring, refresh=True)


async def test_ubuntus_signature_that_is_anothers(
    mirror: Mirror, store: Store, qcow2: bytes
) -> None:
    sums = mirror.publish("ubuntu-24.04", "x86_64", qcow2)
    page = mirror.server.pages[sums.removeprefix(mirror.server.address) + ".gpg"]
    page.body = mirror.signer.gpg("--detach-sign", stdin=b"something else")
    with pytest.raises(SignatureWrong, match="the text is not what was signed"):
        await store.pull("ubuntu-24.04", arch="x86_64")
