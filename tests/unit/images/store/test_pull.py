"""What is in the store after a pull: the image whole and checked, or nothing."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit import images
from qmpkit.errors import (
    ChecksumWrong,
    JournalNewer,
    PullFailed,
    SignatureWrong,
    SpecInvalid,
)
from qmpkit.images import Store
from qmpkit.images.store import index, sources
from qmpkit.images.store.catalogue import Entry, Published
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.sizes import PULL_CANCELS_EVERY
from tests.unit.images.store.server import Server, left

pytestmark = pytest.mark.usefixtures("spawner")

RAW = b"x" * 512 * 300


def sums(body: bytes, name: str, algorithm: str = "sha256") -> bytes:
    return f"{hashlib.new(algorithm, body).hexdigest()}  {name}\n".encode()


def program(code: str, *argv: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "NO_PROXY": "*"})


# --- what is pulled, and what vouches for it


async def test_a_list_of_sums(server: Server, store: Store, qcow2: bytes) -> None:
    url = server.put("/images/disk.qcow2", qcow2)
    lists = server.put("/images/SHA512SUMS", sums(qcow2, "disk.qcow2", "sha512"))
    image = await store.pull(url, checksums=lists)
    assert image.vouched == f"sha512 in {lists}"
    assert (image.format, image.virtual_size, image.names) == ("qcow2", 1 << 30, ("disk",))
    # With a sum nothing is asked again but the list.
    server.asked.clear()
    assert (await store.pull(url, checksums=lists)) == image
    assert [path for path, _ in server.asked] == ["/images/SHA512SUMS"]
    # Beside an image alone there may be no name in it.
    server.put("/images/disk.qcow2.sha512", hashlib.sha512(qcow2).hexdigest().encode())
    await store.pull(url, checksums=f"{url}.sha512")


async def test_a_list_that_does_not_help(server: Server, store: Store, tmp_path: Path) -> None:
    url = server.put("/disk.raw", RAW)
    (tmp_path / "SUMS").write_bytes(sums(RAW, "other.raw"))
    with pytest.raises(ChecksumWrong, match=r"SUMS has no SHA-256, .* of 'disk\.raw'"):
        await store.pull(url, checksums=tmp_path / "SUMS")
    (tmp_path / "SUMS").write_bytes(sums(b"another", "disk.raw"))
    with pytest.raises(ChecksumWrong, match="what came is not what its sha256 says"):
        await store.pull(url, checksums=tmp_path / "SUMS")
    with pytest.raises(ChecksumWrong, match="states another sha256 than is given"):
        await store.pull(url, checksums=tmp_path / "SUMS", sha256="ab" * 32)
    with pytest.raises(PullFailed, match=r"SUMS.*: the server says 404"):
        await store.pull(url, checksums=server.url("/SUMS"))
    with pytest.raises(PullFailed, match="a file of checksums is not that large"):
        await store.pull(url, checksums=server.put("/large", bytes(5 << 20)))
    with pytest.raises(PullFailed, match="No such file or directory"):
        await store.pull(url, checksums=tmp_path / "none")
    assert await store.images() == ()
    assert left(store) == set()


async def test_a_keyring_that_did_not_sign(server: Server, store: Store, tmp_path: Path) -> None:
    url = server.put("/disk.raw", RAW)
    lists = server.put("/SUMS", sums(RAW, "disk.raw"))
    server.put("/SUMS.gpg", b"no signature")
    (tmp_path / "keys.gpg").write_bytes(b"no keys")
    with pytest.raises(SignatureWrong):
        await store.pull(url, checksums=lists, keyring=tmp_path / "keys.gpg")
    assert not [path for path, _ in server.asked if path == "/disk.raw"]


async def test_it_comes_packed(server: Server, store: Store, qcow2: bytes) -> None:
    packed = gzip.compress(qcow2)
    image = await store.pull(
        server.put("/disk.img.gz", packed), sha256=hashlib.sha256(packed).hexdigest()
    )
    assert image.digest == hashlib.sha256(qcow2).hexdigest()
    assert image.checksums["sha256"] == hashlib.sha256(packed).hexdigest()
    assert (image.path.read_bytes(), image.name) == (qcow2, "disk")
    assert left(store) == set()


async def test_a_file(store: Store, tmp_path: Path, qcow2: bytes) -> None:
    origin = tmp_path / "disk.qcow2.gz"
    origin.write_bytes(gzip.compress(qcow2))
    (tmp_path / "SUMS").write_bytes(sums(origin.read_bytes(), "disk.qcow2.gz"))
    image = await store.pull(origin, checksums=tmp_path / "SUMS")
    assert image.path.read_bytes() == qcow2
    assert image.source == str(origin)
    origin.write_bytes(gzip.compress(b"y" * 512))
    with pytest.raises(ChecksumWrong, match="it is not what its sha256 says"):
        await store.pull(origin, checksums=tmp_path / "SUMS")
    assert left(store) == set()


async def test_only_a_changed_file_comes_again(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", RAW)
    first = await store.pull(url)
    assert (await store.pull(url)).digest == first.digest
    assert server.sent == len(RAW)  # the server has said: 304
    server.put("/disk.raw", RAW + RAW)
    second = await store.pull(url)
    assert second.names == ("disk",)
    assert [image.names for image in await store.images()] == [("disk",), ()]
    assert (await store.find(first.digest[:8])).size == len(RAW)


async def test_a_damaged_one_is_found_and_mended(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", RAW)
    image = await store.pull(url)
    assert [each.ok for each in await store.verify()] == [True]
    image.path.chmod(0o600)
    image.path.write_bytes(b"z" * len(RAW))
    (damaged,) = await store.verify("disk")
    assert (damaged.ok, damaged.problem) == (False, "its content is another one by now")
    await store.pull(url, refresh=True)
    assert [each.problem for each in await store.verify()] == [""]
    image.path.unlink()
    (lost,) = await store.verify()
    assert lost.problem == "it cannot be read: no such file or directory"
    await store.pull(url)
    assert [each.problem for each in await store.verify()] == [""]


# --- names


async def test_a_name_is_not_taken_from_another(server: Server, store: Store) -> None:
    first = await store.pull(server.put("/a/disk.raw", RAW))
    other = server.put("/b/disk.raw", RAW + RAW)
    with pytest.raises(SpecInvalid, match="the name 'disk' is that of an image from http"):
        await store.pull(other)
    assert (await store.pull(other, name="disk-b")).names == ("disk-b",)
    # One content has one file, whatever it is called.
    third = await store.pull(server.put("/c/third.raw", RAW))
    assert (third.path, third.names) == (first.path, ("disk", "third"))
    with pytest.raises(SpecInvalid, match=r"no image 'dsk' in the store \(did you mean 'disk'"):
        await store.find("dsk")


async def test_nothing_is_made_by_looking(store: Store) -> None:
    assert await store.images() == ()
    assert await store.verify() == ()
    assert not store.path.exists()


async def test_records_of_others(
    server: Server, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    image = await store.pull(server.put("/disk.raw", RAW))
    record = store.path / "records" / f"{image.digest}.json"
    text = record.read_text()
    record.write_text(text[: len(text) // 2])
    assert await store.images() == ()
    assert "is not understood" in caplog.text
    assert (await store.gc()).removed == ()  # in doubt it stays
    record.write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(JournalNewer):
        await store.images()


# --- several at once


async def test_tasks_share_a_download(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", RAW, stall=[1000])
    found: list[images.Image] = []
    stages: list[str] = []

    async def pull() -> None:
        async with store.pulling(url, sha256=hashlib.sha256(RAW).hexdigest()) as pulling:
            async for step in pulling:
                stages.append(step.stage)
        found.append(pulling.image)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(pull)
    assert len({image.path for image in found}) == 1
    assert server.sent == len(RAW)
    assert stages.count("done") == 4


async def test_who_waits_goes_on_when_the_first_gives_up(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", RAW, stall=[len(RAW) // 2])
    patient = Store(store.path, stall=60)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def give_up() -> None:
            with first:
                await patient.pull(url)

        nursery.start_soon(give_up)
        while not server.asked:  # noqa: ASYNC110  the server tells nobody
            await trio.sleep(0.01)
        async with patient.pulling(url) as pull:
            async for step in pull:
                if step.stage in ("waiting", "download"):  # the first one's, told here too
                    first.cancel()
    assert pull.image.path.read_bytes() == RAW


async def test_programs_share_a_download(server: Server, store: Store) -> None:
    code = (
        "import sys, trio\nfrom qmpkit import images\n"
        "print(trio.run(images.Store(sys.argv[1], stall=1).pull, sys.argv[2]).digest)"
    )
    url = server.put("/disk.raw", RAW, stall=[1000])
    other = program(code, store.path, url)
    while not server.asked:  # noqa: ASYNC110  the server tells nobody
        await trio.sleep(0.01)
    digest = (await store.pull(url)).digest
    out, _ = await trio.to_thread.run_sync(other.communicate)
    assert out.decode().strip() == digest == hashlib.sha256(RAW).hexdigest()
    assert server.sent == len(RAW)
    assert len(await store.images()) == 1


async def test_cancelled_at_every_checkpoint(server: Server, store: Store, qcow2: bytes) -> None:
    packed = gzip.compress(qcow2)
    url = server.put("/disk.qcow2.gz", packed)

    async def pull() -> None:
        await store.pull(url)

    async def usable() -> None:
        for image in await store.images():
            assert (await store.verify(image.digest))[0].ok
        if await store.images():
            await store.remove(hashlib.sha256(qcow2).hexdigest())
        assert server.clients() == 0

    assert await cancel_at_every_checkpoint(pull, every=PULL_CANCELS_EVERY, after=usable) > 2
    await store.gc()
    assert left(store) == set()


# --- a full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "qmpkit-test", str(folder)]
    done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk(server: Server, small: Path, tmp_path: Path, qcow2: bytes) -> None:
    store = Store(small / "store")
    told = r"No space left on device.*\. Cure: free some space there"
    big = os.urandom(2 << 20)
    with pytest.raises(PullFailed, match=told):
        await store.pull(server.put("/told.raw", big))
    with pytest.raises(PullFailed, match=told):
        await store.pull(server.put("/untold.raw", big, length=False))
    with pytest.raises(PullFailed, match=told):
        await store.pull(server.put("/packed.raw.gz", gzip.compress(b"x" * (4 << 20))))
    (tmp_path / "big.raw").write_bytes(big)
    with pytest.raises(PullFailed, match=told):
        await store.pull(tmp_path / "big.raw")
    assert left(store) == set()
    assert (await store.pull(server.put("/disk.img", qcow2))).size == len(qcow2)


async def test_no_room_for_its_name(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    url = server.put("/disk.raw", RAW)
    with monkeypatch.context() as patched, pytest.raises(PullFailed, match="No space left"):
        patched.setattr(index, "give_name", refuse)
        await store.pull(url)
    assert [path for path in store.path.rglob("*") if path.is_file()] == [store.path / "lock"]
    await store.pull(url)


async def test_the_readmes_program(
    server: Server,
    store: Store,
    tmp_path: Path,
    qcow2: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[4] / "README.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "Store()" in block
    )
    image = Published(server.put("/debian.qcow2", qcow2), "qcow2", "SUMS")
    server.put("/SUMS", sums(qcow2, "debian.qcow2"))
    entry = Entry(title="Debian", x86_64=image)
    monkeypatch.setattr(sources, "published", lambda name, arch: (entry, image))
    monkeypatch.setenv("QMPKIT_IMAGES_DIR", str(store.path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(f"async def program():\n{textwrap.indent(code, '    ')}", names)
    await names["program"]()
    assert "done" in capsys.readouterr().out
    _, base = await images.chain("web.qcow2")
    assert base.path == (await store.find("debian-12")).path
