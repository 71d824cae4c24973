"""Any name, size and chain of images, as the real qemu-img of each version finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.process.spawner import shared_spawner
from tests.live.image_tools import FORMATS, MIB, assert_same, left, said, written
from tests.sizes import IMAGE_CHAINS

pytestmark = pytest.mark.live


NAMES = st.one_of(
    st.sampled_from(
        ["a b", "a,b", "a,,b=c", "nbd:host", "json:{}", "-o", "--", "two\nlines", "%s", "n" * 255]
    ),
    st.binary(min_size=1, max_size=60)
    .map(lambda raw: os.fsdecode(raw.replace(b"/", b"").replace(b"\0", b"")))
    .filter(lambda name: name not in ("", ".", "..")),
)
SIZES = st.one_of(st.integers(1, 64).map(lambda n: n * 512), st.integers(0, 1 << 42))


@attrs.frozen
class Drawn:
    """A chain to be made: the base first."""

    names: Sequence[str]
    raw_base: bool
    size: int
    in_folders: Sequence[bool]


CHAINS = st.integers(1, 5).flatmap(
    lambda depth: st.builds(
        Drawn,
        names=st.lists(NAMES, min_size=depth, max_size=depth, unique=True),
        raw_base=st.booleans(),
        size=SIZES,
        in_folders=st.lists(st.booleans(), min_size=depth, max_size=depth),
    )
)


async def make(drawn: Drawn, folder: Path) -> Path:
    """The top of the chain, made by us."""
    format, image = "raw" if drawn.raw_base else "qcow2", None
    for number, name in enumerate(drawn.names):
        place = folder / str(number) if drawn.in_folders[number] else folder
        place.mkdir(exist_ok=True)
        if image is None:
            image = await images.create(place / name, drawn.size, format)
        else:
            image = await images.overlay(place / name, image, format)
            format = "qcow2"
    assert image is not None
    return image


@settings(
    max_examples=IMAGE_CHAINS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=CHAINS)
async def test_any_chain(qemu_img: str, drawn: Drawn) -> None:
    """Made, told and copied as qemu-img sees it, under any name and in any size."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with shared_spawner():
            top = await make(drawn, folder)
            ours = await images.chain(top)
            theirs = await their_chain(qemu_img, top, ours[0].format)
            assert [facts_of(image) for image in ours] == [their_facts(image) for image in theirs]
            assert [image.path.name for image in reversed(ours)] == list(drawn.names)
            for image in ours[:-1]:
                assert image.backing_format is not None
            if ours[0].virtual_size <= 64 * MIB:
                copy = await images.convert(
                    top, folder / "copied", source_format=ours[0].format, format="qcow2"
                )
                await assert_same(top, ours[0].format, copy, "qcow2", qemu_img)


async def their_chain(qemu_img: str, top: Path, format: str) -> list[dict[str, Any]]:
    words = ["info", "--backing-chain", "--output=json", "-f", format, "--", str(top)]
    found: list[dict[str, Any]] = json.loads(await said(qemu_img, *words))
    return found


def facts_of(image: images.ImageInfo) -> tuple[object, ...]:
    return (
        image.format,
        image.virtual_size,
        image.disk_size,
        image.cluster_size,
        image.dirty,
        image.backing_format,
    )


def their_facts(image: dict[str, Any]) -> tuple[object, ...]:
    return (
        image["format"],
        image["virtual-size"],
        image["actual-size"],
        image.get("cluster-size"),
        image["dirty-flag"],
        image.get("backing-filename-format"),
    )


@pytest.mark.parametrize("size", ["8191PiB", (1 << 63) - 1, 1 << 63, 1 << 80])
async def test_absurd_sizes(qemu_img: str, tmp_path: Path, size: int | str) -> None:
    """Made so that it can be read, or refused with a reason."""
    async with shared_spawner():
        for format in FORMATS:
            path = tmp_path / format
            try:
                await images.create(path, size, format)
            except ImageFailed as error:
                assert error.stderr
                assert left(tmp_path) == set()
            else:
                assert size != 1 << 63, format
                assert (await images.info(path, format=format)).virtual_size > 1 << 50
                path.unlink()


async def test_an_overlay_has_the_size_that_qemu_img_gives_it(
    qemu_img: str, tmp_path: Path
) -> None:
    async with shared_spawner():
        for size in (1, 511, 513, 4096, 100_000):
            base, theirs = written(tmp_path / f"{size}", size), tmp_path / f"{size}.theirs"
            ours = await images.overlay(tmp_path / f"{size}.ours", base, "raw")
            words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(theirs)]
            await said(qemu_img, *words)
            sizes = [(await images.info(path)).virtual_size for path in (ours, theirs)]
            assert sizes[0] == sizes[1]


# --- those that cannot be followed


async def asked_everything(top: Path) -> list[str]:
    """What each operation answers that would have to open the whole chain."""
    folder = top.parent
    told = []
    for ask in (
        lambda: images.chain(top),
        lambda: images.check(top, "qcow2"),
        lambda: images.resize(top, "+1MiB", "qcow2"),
        lambda: images.overlay(folder / "new", top, "qcow2"),
        lambda: images.convert(top, folder / "new", source_format="qcow2", format="raw"),
    ):
        with pytest.raises(ImageFailed) as caught:
            await ask()
        told.append(str(caught.value))
    assert "new" not in left(folder)
    return told


async def test_a_thousand_deep(qemu_img: str, tmp_path: Path) -> None:
    await images.create(tmp_path / "0000", "1MiB", "qcow2")
    template = (await images.overlay(tmp_path / "0001", tmp_path / "0000", "qcow2")).read_bytes()
    for number in range(2, 1000):
        (tmp_path / f"{number:04}").write_bytes(
            template.replace(b"0000", f"{number - 1:04}".encode())
        )
    with trio.fail_after(5):
        for told in await asked_everything(tmp_path / "0999"):
            assert f"{str(tmp_path / '0999')!r} is deeper than 200 images. Cure: shorten it" in told
        assert len(await images.chain(tmp_path / "0040")) == 41


async def test_a_loop(qemu_img: str, tmp_path: Path) -> None:
    one = await images.create(tmp_path / "one", "1MiB", "qcow2")
    two = await images.overlay(tmp_path / "two", one, "qcow2")
    await said(qemu_img, "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(two), str(one))
    with trio.fail_after(5):
        for told in await asked_everything(two):
            assert f"the bases of {str(two)!r} form a loop at {str(two)!r}" in told
    assert (await images.info(two)).backing_path == tmp_path / "./one"


async def test_a_missing_base(qemu_img: str, tmp_path: Path) -> None:
    one = await images.create(tmp_path / "one", "1MiB", "qcow2")
    two = await images.overlay(tmp_path / "two", one, "qcow2")
    one.unlink()
    for told in await asked_everything(two):
        assert f"the base {str(one)!r} of {str(two)!r} does not exist. Cure: put it back" in told
