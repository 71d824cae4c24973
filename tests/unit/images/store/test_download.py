"""Downloads from a server that breaks off, stalls, lies, or has another file by now."""

from __future__ import annotations

import hashlib
import importlib
import random
from pathlib import Path

import httpx
import pytest
import trio

from qmpkit.errors import ChecksumWrong, HostLacks, ImageRefused, PullFailed
from qmpkit.images import Store
from qmpkit.images.store import web
from tests.unit.images.store.server import Page, Server, left

pytestmark = pytest.mark.usefixtures("spawner")

BODY = random.Random(3).randbytes(200 * 1024)
SUM = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2


async def test_it_is_gone_on_with_where_it_broke_off(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY, cut=[HALF, 1000])
    image = await store.pull(url, sha256=SUM)
    assert image.path.read_bytes() == BODY
    ranges = [asked for _, asked in server.asked]
    assert ranges == ["", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.sent == len(BODY)
    assert image.digest == image.checksums["sha256"] == SUM
    assert (image.format, image.size, image.vouched) == ("raw", len(BODY), "sha256 as given")
    assert image.path.stat().st_mode & 0o777 == 0o444
    assert {path.stat().st_mode & 0o777 for path in (store.path, *image.path.parents[:1])} == {
        0o700
    }


async def test_what_a_cancelled_pull_has_had_is_not_had_again(server: Server, store: Store) -> None:
    big = BODY * 8
    url = server.put("/disk.raw", big, stall=[len(big) - 1000])
    with trio.move_on_after(10) as scope:
        async with store.pulling(url) as pull:
            async for step in pull:
                if step.done > 1 << 20:
                    scope.cancel()
    assert scope.cancelled_caught
    assert server.clients() == 0
    assert await store.images() == ()
    assert (await store.pull(url)).path.read_bytes() == big  # no sum: the ETag vouches for it
    (_, first), (_, second) = server.asked
    assert first == ""
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 1 << 20


async def test_a_stalled_server_holds_up_no_cancellation(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY, stall=[0])
    patient = Store(store.path, stall=3600)
    with trio.fail_after(5), trio.move_on_after(0.2) as scope:
        await patient.pull(url)
    assert scope.cancelled_caught
    assert server.clients() == 0


async def test_a_stalled_server_is_given_up(server: Server, store: Store) -> None:
    brief = Store(store.path, stall=0.3)
    url = server.put("/disk.raw", BODY, stall=[HALF])
    assert (await brief.pull(url, sha256=SUM)).digest == SUM
    dead = server.put("/dead.raw", BODY, stall=[0] * 9)
    with pytest.raises(PullFailed, match=r"the server has sent nothing for 0\.3 s") as caught:
        await brief.pull(dead)
    assert str(caught.value).startswith(f"cannot pull {dead!r}: ")
    assert [path for path, _ in server.asked].count("/dead.raw") == 3


async def test_a_server_without_ranges(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY, cut=[HALF], ranges=False)
    assert (await store.pull(url, sha256=SUM)).digest == SUM
    assert server.sent == HALF + len(BODY)


async def test_a_server_that_tells_nothing(server: Server, store: Store) -> None:
    """Neither a length nor a tag: what breaks off is begun anew when nothing vouches for it."""
    url = server.put("/disk.raw", BODY, etag=False, length=False)
    assert (await store.pull(url)).digest == SUM
    again = server.put("/again.raw", BODY, etag=False, cut=[HALF])
    assert (await store.pull(again)).digest == SUM
    assert [asked for path, asked in server.asked if path == "/again.raw"] == ["", ""]


async def test_another_file_is_there_by_now(server: Server, store: Store) -> None:
    """Never half of one and half of the other."""
    for path, seed in (("/a.raw", 4), ("/b.raw", 5)):
        new = random.Random(seed).randbytes(len(BODY))
        options = {"sha256": hashlib.sha256(new).hexdigest()} if seed == 5 else {}
        url = server.put(path, BODY, cut=[HALF, HALF, HALF], status=[0, 410])
        with pytest.raises(PullFailed):
            await store.pull(url, **options)  # type: ignore[arg-type]
        server.put(path, new)
        image = await store.pull(url, **options)  # type: ignore[arg-type]
        assert image.path.read_bytes() == new


async def test_a_shorter_file_is_there_by_now(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY, cut=[HALF], status=[0, 404])
    with pytest.raises(PullFailed):
        await store.pull(url, sha256="ab" * 32)
    small = BODY[: 512 * 10]
    server.put("/disk.raw", small)
    assert (await store.pull(url, sha256=hashlib.sha256(small).hexdigest())).size == len(small)


async def test_a_wrong_sum_leaves_nothing(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY)
    said = "what came is not what its sha256 says. Cure: try again"
    with pytest.raises(ChecksumWrong, match=said):
        await store.pull(url, sha256="ab" * 32)
    assert left(store) == set()
    assert len(server.asked) == 1
    # What is left of something else does not spoil it for ever.
    server.put("/left.raw", BODY, cut=[HALF], status=[0, 404])
    with pytest.raises(PullFailed):
        await store.pull(server.url("/left.raw"), sha256=SUM)
    (data,) = (path for path in store.path.rglob("data") if path.is_file())
    data.write_bytes(bytes(len(BODY)))
    assert (await store.pull(server.url("/left.raw"), sha256=SUM)).digest == SUM
    # In pieces, it is had once more, and no more.
    server.asked.clear()
    url = server.put("/pieces.raw", BODY, cut=[HALF, -1] * 9)
    with pytest.raises(ChecksumWrong, match=said):
        await store.pull(url, sha256="ab" * 32)
    assert len(server.asked) == 4


async def test_a_server_that_never_sends_all(server: Server, store: Store) -> None:
    body = BODY * 25
    cut = [(2 + number % 3) << 20 for number in range(50)]  # each time it begins anew
    url = server.put("/disk.raw", body, cut=cut, ranges=False)
    with pytest.raises(PullFailed, match="the connection broke off"):
        await store.pull(url)
    assert len(server.asked) < 10


@pytest.mark.parametrize(
    ("page", "said", "times"),
    [
        (Page(status=[404]), "the server says 404 Not Found: there is no such file", 1),
        (Page(status=[403]), "the server says 403 Forbidden: it may not be had", 1),
        (Page(status=[503] * 9), "the server says 503 Service Unavailable", 3),
        (Page(body=BODY, claimed=len(BODY) + 7), "the connection broke off", 3),
        (Page(moved="/moved"), "the server sends on and on, more than 10 times", 11),
    ],
)
async def test_what_a_server_refuses(
    server: Server, store: Store, page: Page, said: str, times: int
) -> None:
    server.pages["/moved"] = page
    with pytest.raises(PullFailed, match=said):
        await store.pull(server.url("/moved"), sha256=SUM)
    assert len(server.asked) == times
    assert await store.images() == ()


async def test_a_server_that_recovers(server: Server, store: Store) -> None:
    url = server.put("/disk.raw", BODY, status=[503, 500])
    assert (await store.pull(url)).digest == SUM


async def test_it_has_moved(server: Server, store: Store) -> None:
    server.put("/new.raw", BODY)
    server.pages["/disk.raw"] = Page(moved="/new.raw")
    image = await store.pull(server.url("/disk.raw"))
    assert (image.digest, image.source) == (SUM, server.url("/disk.raw"))


async def test_https_that_leads_to_http_is_noticed() -> None:
    def answer(*urls: str) -> httpx.Response:
        *before, last = (httpx.Response(200, request=httpx.Request("GET", url)) for url in urls)
        last.history = before
        return last

    assert web._weakened(answer("https://a/x", "http://b/x"))
    assert web._weakened(answer("https://a/x", "http://b/x", "https://c/x"))
    assert not web._weakened(answer("https://a/x", "https://b/x"))
    assert not web._weakened(answer("http://a/x", "https://b/x"))
    assert not web._weakened(answer("http://a/x", "http://b/x"))


async def test_a_proxy_that_cannot_be_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "what://is.this")
    with pytest.raises(HostLacks, match="the proxy of this environment cannot be used"):
        await store.pull("http://127.0.0.1:1/disk.raw")


async def test_nobody_listens(store: Store, server: Server) -> None:
    with pytest.raises(PullFailed, match=r"no connection: .*\. Cure: is the address right\?"):
        await store.pull("http://127.0.0.1:1/disk.raw")


async def test_bounds(server: Server, store: Store) -> None:
    small = Store(store.path, max_size=HALF)
    said = r"it is larger than 100KiB\. Cure: raise the store's max_size"
    with pytest.raises(PullFailed, match=said):
        await small.pull(server.put("/told.raw", BODY))
    assert server.sent < len(BODY) + 1
    with pytest.raises(PullFailed, match=said):
        await small.pull(server.put("/untold.raw", BODY, length=False))
    with pytest.raises(PullFailed, match=r"No space left on device, .* bytes are missing"):
        huge = Store(store.path, max_size=1 << 60)
        await huge.pull(server.put("/huge.raw", BODY, claimed=1 << 59))
    assert await small.images() == ()


async def test_a_page_instead_of_a_disk(server: Server, store: Store) -> None:
    url = server.put("/disk.img", b"<html>Please log in</html>")
    with pytest.raises(ImageRefused, match="with 26 bytes it is no disk: the server may have"):
        await store.pull(url)
    assert left(store) == set()


async def test_without_httpx(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(HostLacks, match=r"needs httpx, .* Cure: pip install 'qmpkit\[images\]'"):
        await store.pull("https://example.org/disk.raw")
    (tmp_path / "disk.raw").write_bytes(bytes(512))
    assert (await store.pull(tmp_path / "disk.raw")).size == 512
