"""Pulls over https: from servers that are trusted, and from those that are not."""

from __future__ import annotations

import hashlib
import os
import random
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

from qmpkit.cli import main
from qmpkit.errors import CertificateWrong, HostLacks, PullFailed, SpecInvalid
from qmpkit.images import Store
from qmpkit.images.store import download, web
from tests.unit.images.store.server import Server, left, serving

BODY = random.Random(3).randbytes(200 * 1024)
SUM = hashlib.sha256(BODY).hexdigest()
CURE = "name that one's certificate: --ca-file, or SSL_CERT_FILE"


@attrs.frozen
class Authority:
    ca: trustme.CA
    file: Path

    def context(self, *names: str, **how: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, **how).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem")
    made.ca.cert_pem.write_to_path(str(made.file))
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    for module in (download, web):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))


@pytest.fixture
def secure(authority: Authority) -> Iterator[Server]:
    with serving(authority.context("127.0.0.1")) as ours:
        yield ours


@pytest.fixture
def trusting(store: Store, authority: Authority) -> Store:
    return attrs.evolve(store, ca_file=authority.file)


async def test_one_that_is_trusted(secure: Server, trusting: Store) -> None:
    """Broken off, it is gone on with; its sums come over https, too."""
    url = secure.put("/disk.raw", BODY, cut=[len(BODY) // 2])
    sums = secure.put("/SHA256SUMS", f"{SUM}  disk.raw\n".encode())
    image = await trusting.pull(url, checksums=sums)
    assert image.path.read_bytes() == BODY
    assert image.vouched == f"sha256 in {sums}"
    assert [asked for path, asked in secure.asked if path == "/disk.raw"] == [
        "",
        f"bytes={len(BODY) // 2}-",
    ]


async def test_the_environment_says_whom_to_trust(
    secure: Server, store: Store, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = secure.put("/disk.raw", BODY)
    with pytest.raises(CertificateWrong, match=CURE):
        await store.pull(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert (await store.pull(url)).digest == SUM


async def test_one_that_nobody_vouches_for(secure: Server, store: Store) -> None:
    """It is not asked again, and nothing of it is kept."""
    url = secure.put("/disk.raw", BODY)
    with pytest.raises(CertificateWrong, match="is not trusted: unable to get local issuer") as e:
        await store.pull(url)
    assert str(e.value).startswith(f"cannot pull {url!r}: ")
    assert secure.asked == []
    assert left(store) == set()


async def test_a_list_from_one_that_nobody_vouches_for(secure: Server, store: Store) -> None:
    sums = secure.put("/SHA256SUMS", f"{SUM}  disk.raw\n".encode())
    with serving() as plain, pytest.raises(CertificateWrong, match="SHA256SUMS"):
        await store.pull(plain.put("/disk.raw", BODY), checksums=sums)


@pytest.mark.parametrize(
    ("names", "how", "why"),
    [
        (("example.org",), {}, r"is another one's: .*127\.0\.0\.1.*Cure: is the address right"),
        (
            ("127.0.0.1",),
            {"not_after": datetime.now(UTC) - timedelta(days=1)},
            r"is not valid now: certificate has expired\. Cure: is this host's clock right",
        ),
    ],
)
async def test_a_certificate_that_is_wrong(
    trusting: Store, authority: Authority, names: tuple[str], how: dict[str, Any], why: str
) -> None:
    context = authority.context(*names, **how)
    with serving(context) as wrong, pytest.raises(CertificateWrong, match=why):
        await trusting.pull(wrong.put("/disk.raw", BODY))


async def test_a_port_without_tls(trusting: Store, server: Server) -> None:
    url = server.put("/disk.raw", BODY).replace("http:", "https:")
    with pytest.raises(PullFailed, match=r"no TLS at this port\. Cure: is it http:"):
        await trusting.pull(url)
    assert server.asked == []


async def test_https_that_leads_to_http(secure: Server, server: Server, trusting: Store) -> None:
    """Only what is checked may come by a way on which anybody may change it."""
    url = secure.put("/disk.raw", b"", moved=server.put("/disk.raw", BODY))
    with pytest.raises(PullFailed, match="https leads to http there"):
        await trusting.pull(url)
    assert (await trusting.pull(url, sha256=SUM)).digest == SUM


async def test_authorities_that_cannot_be_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, none, text = "https://127.0.0.1:1/x.raw", tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    for file, why in ((none, "cannot be read: no such file"), (text, "has no certificate that")):
        with pytest.raises(SpecInvalid, match=f"ca_file: .*{why}"):
            await attrs.evolve(store, ca_file=file).pull(url)
        with (
            monkeypatch.context() as patch,
            pytest.raises(HostLacks, match=f"SSL_CERT_FILE.*{why}"),
        ):
            patch.setenv("SSL_CERT_FILE", str(file))
            await store.pull(url)


def test_the_command(
    secure: Server,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QMPKIT_IMAGES_DIR", str(tmp_path / "images"))
    url = secure.put("/disk.raw", BODY)
    assert main(["image", "pull", url]) == 1
    assert CURE in capsys.readouterr().err
    assert main(["image", "pull", url, "--ca-file", str(authority.file)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes() == BODY
    assert main(["image", "pull", url, "--ca-file", str(tmp_path / "none")]) == 2


async def test_cancelled_in_the_handshake(store: Store) -> None:
    """A server that takes the connection and says nothing."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    try:
        port = listeners[0].socket.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with trio.fail_after(5), trio.move_on_after(0.2) as scope:
            await attrs.evolve(store, stall=3600).pull(f"https://127.0.0.1:{port}/x.raw")
        assert scope.cancelled_caught
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    finally:
        for listener in listeners:
            await listener.aclose()
    assert left(store) == set()
