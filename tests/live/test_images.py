"""Images by the real qemu-img of each version: what is told is what qemu-img itself finds."""

from __future__ import annotations

import json
import os
import random
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
from qmpkit.images import Limits, drafts
from qmpkit.images.new import Preallocation, place_empty
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.tools import run
from tests.sizes import IMAGE_CHAINS
from tests.unit.host.images_on_disk import qcow2

pytestmark = pytest.mark.live

MIB = 1 << 20
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed")


@pytest.fixture
def qemu_img(qemu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The qemu-img beside each QEMU, and the one that qmpkit finds."""
    folder = Path(qemu).resolve().parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(folder / "qemu-img")


async def said(*argv: str, status: int = 0) -> str:
    done = await run(argv)
    assert done.status.code == status, done.out + done.err
    return done.out


async def assert_same(
    one: Path, one_format: str, other: Path, other_format: str, qemu_img: str
) -> None:
    words = ["compare", "-f", one_format, "-F", other_format, "--", str(one), str(other)]
    assert "identical" in await said(qemu_img, *words)


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def written(path: Path, size: int, seed: int = 0) -> Path:
    """A raw image with some content between holes."""
    chooser = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(3):
            file.seek(chooser.randrange(max(1, size - 4096)))
            file.write(chooser.randbytes(min(4096, size)))
        file.truncate(size)
    return path


# --- names, sizes, chains

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


# --- formats, with and without O_TMPFILE


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "named":

        def refuse(folder: Path) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)
    return str(request.param)


async def test_every_format(qemu_img: str, tmp_path: Path, draft: str) -> None:
    raw = written(tmp_path / "raw", 2 * MIB)
    async with shared_spawner():
        for format in FORMATS:
            target = tmp_path / f"a,b:c.{format}"
            made = await images.convert(raw, target, source_format="raw", format=format)
            assert left(tmp_path) == {"raw", target.name}
            assert made.stat().st_mode & 0o777 == 0o644
            found = await images.info(made)
            assert found.format == format
            assert found.corrupt is (False if format == "qcow2" else None)
            # A guest's CHS geometry rounds what vpc holds.
            back = await images.convert(made, tmp_path / "b", source_format=format, format="raw")
            assert back.read_bytes()[: 2 * MIB] == raw.read_bytes()
            made.unlink()
            back.unlink()


async def test_a_vmdk_names_itself(qemu_img: str, tmp_path: Path) -> None:
    """VMware does not open one that names another file."""
    made = await images.create(tmp_path / "disk.vmdk", "1MiB", "vmdk")
    assert b'SPARSE "disk.vmdk"' in made.read_bytes()


async def test_a_base_of_any_format(qemu_img: str, tmp_path: Path, draft: str) -> None:
    raw = written(tmp_path / "raw", 2 * MIB)
    async with shared_spawner():
        for format in FORMATS:
            base = tmp_path / f"base.{format}"
            await images.convert(raw, base, source_format="raw", format=format)
            top = await images.overlay(tmp_path / f"{format}.top", base, format)
            await assert_same(top, "qcow2", base, format, qemu_img)
            found = await images.chain(top)
            assert [image.format for image in found] == ["qcow2", format]


async def test_the_size_of_a_base_in_vpc(qemu_img: str, tmp_path: Path) -> None:
    base = await images.create(tmp_path / "base", 1_000_000, "vpc")
    top = await images.overlay(tmp_path / "top", base, "vpc")
    sizes = [image.virtual_size for image in await images.chain(top)]
    assert sizes[0] == sizes[1]


async def test_preallocation(qemu_img: str, tmp_path: Path) -> None:
    modes: tuple[Preallocation, ...] = ("metadata", "falloc", "full")
    for mode in modes:
        made = await images.create(tmp_path / mode, 4 * MIB, "qcow2", preallocation=mode)
        assert ((await images.info(made)).disk_size >= 4 * MIB) is (mode != "metadata")


# --- info


async def test_snapshots_and_bitmaps(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    await said(qemu_img, "snapshot", "-c", "before the upgrade", str(path))
    await said(qemu_img, "bitmap", "--add", "-g", "4096", "-f", "qcow2", str(path), "b0")
    await said(qemu_img, "bitmap", "--add", "--disable", "-f", "qcow2", str(path), "b1")
    found = await images.info(path)
    (snapshot,) = found.snapshots
    assert (snapshot.name, snapshot.vm_size) == ("before the upgrade", 0)
    assert abs(snapshot.taken - path.stat().st_mtime) < 60
    assert [(one.name, one.granularity, one.recording) for one in found.bitmaps] == [
        ("b0", 4096, True),
        ("b1", 65536, False),
    ]
    assert not any(one.broken for one in found.bitmaps)
    assert found.raw["virtual-size"] == found.virtual_size == MIB
    assert not found.in_use


async def test_a_data_file(qemu_img: str, tmp_path: Path) -> None:
    path, data = tmp_path / "disk", tmp_path / "content"
    options = f"data_file={data},data_file_raw=on"
    await said(qemu_img, "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M")
    assert (await images.info(path)).data_file == data
    data.unlink()
    with pytest.raises(ImageFailed, match=r"the data file .* does not exist\. Cure: put it back"):
        await images.chain(path)


async def test_an_unrecorded_format_is_said(qemu_img: str, tmp_path: Path) -> None:
    await images.create(tmp_path / "base", "1MiB", "qcow2")
    top = qcow2(tmp_path / "top", "base")
    real = await images.overlay(tmp_path / "real", tmp_path / "base", "qcow2")
    # The extension's kind, overwritten: what old versions of qemu-img made.
    content = bytearray(real.read_bytes())
    at = content.index(bytes.fromhex("e2792aca"))
    content[at : at + 4] = b"\1\1\1\1"
    top.write_bytes(content)
    found = await images.chain(top)
    assert found[0].backing_format is None
    assert [image.format for image in found] == ["qcow2", "qcow2"]


async def test_an_encrypted_image(qemu_img: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    secret = ["--object", "secret,id=s,data=abc"]
    options = "encrypt.format=aes,encrypt.key-secret=s"
    await said(qemu_img, "create", "-q", *secret, "-f", "qcow2", "-o", options, str(path), "1M")
    assert (await images.info(path)).encrypted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08" + bytes(600), r"it is compressed \(gzip\).*Cure: unpack it"),
        (b"QFI\xfb" + b"\xff" * 600, "Unsupported qcow2 version"),
        (b"QFI\xfb\0\0\0\3", "Could not open"),
    ],
)
async def test_what_is_no_image(qemu_img: str, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "disk").write_bytes(content)
    with pytest.raises(ImageFailed, match=f"cannot read .*{words}"):
        await images.info(tmp_path / "disk")


async def test_a_name_that_no_file_can_have(qemu_img: str, tmp_path: Path) -> None:
    for ask in (
        lambda: images.info("a\0b"),
        lambda: images.create("a\0b", "1MiB", "raw"),
        lambda: images.create(tmp_path / ("n" * 256), "1MiB", "raw"),
    ):
        with pytest.raises(ImageFailed, match=r"cannot hold a NUL|File name too long"):
            await ask()
    assert left(tmp_path) == set()


@pytest.mark.parametrize("name", ["nbd://127.0.0.1:1/x", 'json:{"driver": "null-co"}'])
async def test_a_base_that_is_no_plain_file(qemu_img: str, tmp_path: Path, name: str) -> None:
    """It is shown, and not opened."""
    top = tmp_path / "top"
    words = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, str(top), "1M"]
    await said(qemu_img, *words)
    (found,) = await images.chain(top)
    assert (found.backing, found.backing_format, found.backing_path) == (name, "raw", None)


async def test_a_stated_format_is_not_questioned(qemu_img: str, tmp_path: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header on it."""
    path = qcow2(tmp_path / "disk", "/etc/shadow")
    found = await images.info(path, format="raw")
    assert (found.format, found.backing) == ("raw", None)
    assert await images.chain(path, format="raw") == (found,)


# --- chains that cannot be followed


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


# --- check


async def test_a_sound_image(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    report = await images.check(path, "qcow2")
    assert report.ok
    assert (report.errors, report.corruptions, report.leaks) == (0, 0, 0)


async def test_leaks_and_corruptions_are_found_and_mended(qemu_img: str, tmp_path: Path) -> None:
    path = await images.convert(
        written(tmp_path / "raw", MIB), tmp_path / "disk", source_format="raw", format="qcow2"
    )
    content = bytearray(path.read_bytes())
    refcounts = int.from_bytes(content[48:56], "big")
    block = int.from_bytes(content[refcounts : refcounts + 8], "big")
    last = len(content) // 65536 - 1
    content[block + 2 * last : block + 2 * last + 2] = b"\0\0"  # in use, and said to be free
    content += bytes(65536)
    content[block + 2 * last + 2 : block + 2 * last + 4] = b"\0\1"  # used by nobody
    path.write_bytes(content)
    found = await images.check(path, "qcow2")
    assert not found.ok
    assert found.corruptions > 0
    assert found.leaks == 1
    mended = await images.check(path, "qcow2", repair="all")
    assert mended.ok
    assert (mended.corruptions_fixed > 0, mended.leaks_fixed) == (True, 1)
    assert (await images.check(path, "qcow2")).leaks == 0


async def test_raw_cannot_be_checked(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "raw")
    with pytest.raises(ImageFailed, match=r"does not support checks.*only formats with metadata"):
        await images.check(path, "raw")


# --- resize


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_resize(qemu_img: str, tmp_path: Path, format: str) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", format)

    async def resized(size: int | str, *, shrink: bool = False) -> int:
        return (await images.resize(path, size, format, shrink=shrink)).virtual_size // 1024

    async with shared_spawner():
        assert await resized("2MiB") == 2048
        assert await resized("+512KiB") == 2560
        assert await resized(3 * MIB) == 3072
        for smaller in ("1MiB", "-1MiB"):
            with pytest.raises(ImageFailed, match="Cure: say shrink=True"):
                await resized(smaller)
        assert await resized("-1MiB", shrink=True) == 2048
        assert await resized("1MiB", shrink=True) == 1024
        with pytest.raises(ImageFailed):
            await resized("-2MiB", shrink=True)


# --- convert


async def test_the_target_is_replaced_in_one_step_or_not_at_all(
    qemu_img: str, tmp_path: Path, draft: str
) -> None:
    raw = written(tmp_path / "raw", MIB)
    target = tmp_path / "target"
    target.write_text("precious")
    with pytest.raises(ImageFailed, match="it exists already"):
        await images.convert(raw, target, source_format="raw", format="qcow2")
    assert target.read_text() == "precious"
    with pytest.raises(ImageFailed):
        await images.convert(raw, target, source_format="qcow2", format="qcow2", replace=True)
    assert target.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to("target")
    await images.convert(raw, link, source_format="raw", format="qcow2", replace=True)
    assert link.is_symlink()
    await assert_same(raw, "raw", target, "qcow2", qemu_img)
    await images.convert(target, target, source_format="qcow2", format="raw", replace=True)
    assert target.read_bytes() == raw.read_bytes()
    assert left(tmp_path) == {"raw", "target", "link"}
    with pytest.raises(ImageFailed, match="it is no regular file"):
        await images.convert(raw, tmp_path, source_format="raw", format="raw", replace=True)


async def test_progress(qemu_img: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(16 * MIB))
    seen = []
    async with images.converting(
        raw, tmp_path / "disk", source_format="raw", format="qcow2", compress=True
    ) as progress:
        async for fraction in progress:
            seen.append(fraction)
            assert (tmp_path / "disk").exists() is (fraction == 1.0)
    assert len(seen) > 5
    assert seen == sorted(set(seen))
    assert (seen[0], seen[-1], progress.fraction) == (0.0, 1.0, 1.0)


async def test_nobody_has_to_look(qemu_img: str, tmp_path: Path) -> None:
    raw = written(tmp_path / "raw", MIB)
    target = tmp_path / "disk"
    async with images.converting(raw, target, source_format="raw", format="qcow2"):
        pass
    assert target.exists()


async def test_a_failure_ends_the_looking(qemu_img: str, tmp_path: Path) -> None:
    raw = written(tmp_path / "raw", MIB)
    with pytest.raises(ImageFailed, match="not in qcow2 format"):
        async with images.converting(
            raw, tmp_path / "disk", source_format="qcow2", format="raw"
        ) as progress:
            async for _ in progress:
                pass
    with pytest.raises(ZeroDivisionError):
        async with images.converting(raw, tmp_path / "disk", source_format="raw", format="raw"):
            raise ZeroDivisionError
    assert left(tmp_path) == {"raw"}


# --- limits


def noise(path: Path, size: int) -> Path:
    """A raw image that takes a while to compress: deflate is quick to give up on true noise."""
    block = random.Random(1).randbytes(MIB).translate(bytes(n % 16 for n in range(256)))
    with path.open("wb") as file:
        for number in range(size // MIB):
            file.write(block[number:] + block[:number])
    return path


LIMITS = [
    (Limits(memory=8 * MIB), "wanted more than 8MiB of memory.*raise limits.memory"),
    (Limits(file_size=MIB), "grew to more than 1MiB.*raise limits.file_size"),
    (Limits(time=0.02), r"took more than 0.02 s.*raise limits.time"),
    (Limits(cpu=1), r"more than 1 s of CPU.*raise limits.cpu"),
]


async def test_limits(qemu_img: str, tmp_path: Path) -> None:
    raw = noise(tmp_path / "raw", 64 * MIB)
    for limits, words in LIMITS:
        with pytest.raises(ImageFailed, match=words):
            await images.convert(
                raw,
                tmp_path / "disk",
                source_format="raw",
                format="qcow2",
                compress=True,
                limits=limits,
            )
        assert left(tmp_path) == {"raw"}


async def test_limits_of_the_others(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "64TiB", "qcow2")
    little = Limits(memory=4 * MIB)
    for ask in (
        lambda: images.info(path, limits=little),
        lambda: images.chain(path, limits=little),
        lambda: images.check(path, "qcow2", limits=little),
        lambda: images.resize(path, "+1GiB", "qcow2", limits=little),
        lambda: images.create(tmp_path / "new", "1GiB", "qcow2", limits=little),
        lambda: images.overlay(tmp_path / "new", path, "qcow2", limits=little),
        lambda: place_empty(tmp_path / "new", "1GiB", "raw", limits=little),
    ):
        with pytest.raises(ImageFailed, match="wanted more than 4MiB of memory"):
            await ask()
    assert left(tmp_path) == {"disk"}
    assert (await images.check(path, "qcow2")).ok
