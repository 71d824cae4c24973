"""Options of new images, secrets, turns, and the overlays of a base: without qemu-img."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit import images
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.host.chain import walk_chain
from qmpkit.images.keys import Key, held_keys
from qmpkit.images.opening import image_options, opened
from qmpkit.images.options import Options, option_words
from qmpkit.images.tool import Asked
from qmpkit.images.turns import limiter, turn
from qmpkit.images.users import overlays_of
from tests.unit.host.images_on_disk import qcow2, raw

KEY = Key("key0", 10, -1)


def words_of(format: str = "qcow2", key: Key | None = None, **options: Any) -> list[str]:
    return option_words(Options(**options), format, key)


def test_options_in_qemu_imgs_words() -> None:
    assert words_of() == []
    assert words_of(
        cluster_size="128KiB", extended_l2=True, lazy_refcounts=True, compression="zstd"
    ) == ["-o", "cluster_size=131072,extended_l2=on,lazy_refcounts=on,compression_type=zstd"]
    assert words_of("raw", preallocation="full") == ["-o", "preallocation=full"]
    assert words_of("luks", KEY, iter_time=10) == ["-o", "key-secret=key0,iter-time=10"]
    assert words_of(key=KEY) == ["-o", "encrypt.format=luks,encrypt.key-secret=key0"]


@pytest.mark.parametrize(
    ("format", "key", "options", "fault"),
    [
        ("qcow2", None, {"cluster_size": 1000}, "cluster_size: 1000 is no power of two"),
        ("qcow2", None, {"cluster_size": "4MiB"}, "cluster_size: 4194304 is no power of two"),
        ("qcow2", None, {"cluster_size": 256}, "cluster_size: 256 is no power of two"),
        ("qcow2", None, {"cluster_size": 4096, "extended_l2": True}, "extended_l2: needs"),
        ("raw", None, {"extended_l2": True}, "extended_l2: raw images have no such option"),
        ("vmdk", None, {"compression": "zstd"}, "compression: vmdk images have no such option"),
        ("luks", None, {}, "secret: a luks image needs one"),
        ("raw", KEY, {}, "secret: raw images are not encrypted"),
        ("qcow2", None, {"iter_time": 10}, "iter_time: only encrypted images"),
        ("qcow2", KEY, {"iter_time": 0}, "iter_time: is to be 1 ms or more"),
    ],
)
def test_what_does_not_go_together(
    format: str, key: Key | None, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(SpecInvalid, match=fault):
        words_of(format, key, **options)


def test_an_overlay_is_not_preallocated() -> None:
    with pytest.raises(SpecInvalid, match="an overlay takes space as its guest writes"):
        option_words(Options(preallocation="full"), "qcow2", None, base=True)


# --- secrets


def test_a_secret_is_in_memory_alone_and_gone_with_the_block() -> None:
    with held_keys("gehéim", None, b"other") as (first, none, other):
        assert none is None
        assert first is not None
        assert other is not None
        assert first.words == ("--object", "secret,id=key0,file=/proc/self/fd/10")
        assert os.pread(first.fd, 99, 0) == "gehéim".encode()
        assert other.fds == {12: other.fd}
        assert "memfd" in str(Path(f"/proc/self/fd/{other.fd}").readlink())
        assert not os.get_inheritable(first.fd)
    for key in (first, other):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(key.fd)


@pytest.mark.parametrize("secret", ["", b"", "a\0b", b"\xff\xfe", "x" * 4097])
def test_a_secret_that_qemu_could_not_take(secret: str | bytes) -> None:
    with pytest.raises(SpecInvalid, match="the secret") as caught, held_keys(secret):
        pytest.fail("it was taken")
    assert caught.value.__suppress_context__
    assert len(str(caught.value)) < 80  # it is not repeated


def test_how_an_encrypted_chain_is_opened(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base,1")
    content = bytearray(base.read_bytes())
    content[35] = 2
    base.write_bytes(content)
    top = qcow2(tmp_path / "a,b=c", "base,1", backing_format="qcow2")
    chain = walk_chain(top, "qcow2")
    assert [layer.encrypted for layer in chain.layers] == [False, True]
    name = str(top).replace(",", ",,")
    assert image_options(chain, KEY) == (
        f"driver=qcow2,file.driver=file,file.filename={name},backing.encrypt.key-secret=key0"
    )
    asked = Asked("read", top)
    with pytest.raises(ImageFailed, match=r"base,1' is encrypted\. Cure: say secret=…"):
        opened(asked, [chain], None)
    (image,) = opened(asked, [chain], KEY)
    assert image.words[-1] == "--image-opts"
    (plain,) = opened(asked, [walk_chain(raw(tmp_path / "x"), "raw")], None)
    assert (plain.words, plain.name) == (("-f", "raw"), str(tmp_path / "x"))


# --- turns


async def test_work_waits_for_its_turn_and_looks_do_not() -> None:
    assert limiter() is images.limiter() is turn(long=True)
    assert limiter().total_tokens == len(os.sched_getaffinity(0))
    limiter().total_tokens = 1
    at_once, most = 0, 0

    async def work() -> None:
        nonlocal at_once, most
        async with turn(long=True):
            at_once += 1
            most = max(most, at_once)
            await trio.lowlevel.checkpoint()
            at_once -= 1

    async with limiter(), trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await wait_all_tasks_blocked()
        assert at_once == 0
        async with turn(long=False):
            pass
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(work)
    assert most == 1


async def test_each_run_has_its_own() -> None:
    assert limiter().total_tokens == len(os.sched_getaffinity(0))


# --- overlays of a base


def test_the_overlays_that_can_be_known(tmp_path: Path) -> None:
    base, elsewhere = raw(tmp_path / "base"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    near = qcow2(tmp_path / "near", "base", backing_format="raw")
    far = qcow2(elsewhere / "far", str(base), backing_format="raw")
    qcow2(tmp_path / "other", "else", backing_format="raw")
    (tmp_path / "link").symlink_to("near")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert set(overlays_of(base, [tmp_path, elsewhere, tmp_path])) == {near, far}
    assert overlays_of(base, [tmp_path / "none"]) == ()
    assert overlays_of(tmp_path / "gone", [tmp_path]) == ()
