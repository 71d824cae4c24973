"""Images that a QEMU runs on: looked into, but not changed, copied or built upon."""

from __future__ import annotations

import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import Disk, ImageInUse, MachineSpec, SpecInvalid, images
from qmpkit.process.tools import run
from tests.sizes import OLDEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST), pytest.mark.usefixtures("qemu_img")]


@asynccontextmanager
async def stranger(qemu: str, image: Path, *name: str) -> AsyncIterator[int]:
    """A QEMU that nobody told us about; its pid."""
    node = f"driver=qcow2,node-name=d,file.driver=file,file.filename={image}"
    argv = [qemu, "-M", "none", "-nodefaults", "-display", "none", *name]
    process = await trio.lowlevel.open_process(
        [*argv, "-blockdev", node, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert b"QMP" in await process.stdout.receive_some(100)  # it has opened its disks
        yield process.pid
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


def everything_that_changes(image: Path, top: Path) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each operation that a QEMU on *image*, the base of *top*, forbids."""
    folder = image.parent
    return {
        "resize": lambda: images.resize(image, "+1MiB", "qcow2"),
        "amend": lambda: images.amend(image, refcount_bits=64),
        "check": lambda: images.check(image, "qcow2"),
        "repair": lambda: images.check(image, "qcow2", repair="all"),
        "make an overlay of": lambda: images.overlay(folder / "new", image, "qcow2"),
        "convert": lambda: images.convert(
            image, folder / "new", source_format="qcow2", format="raw"
        ),
        "convert to": lambda: images.convert(
            folder / "other", image, source_format="qcow2", format="qcow2", replace=True
        ),
        "convert, as the base of another,": lambda: images.convert(
            top, folder / "new", source_format="qcow2", format="raw"
        ),
    }


def content(image: Path) -> bytes:
    return image.read_bytes()


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


async def make(folder: Path) -> tuple[Path, Path]:
    image = await images.create(folder / "disk", "1MiB", "qcow2")
    top = await images.overlay(folder / "top", image, "qcow2")
    await images.create(folder / "other", "1MiB", "qcow2")
    return image, top


async def assert_refused(image: Path, top: Path, holder: str) -> None:
    before = content(image)
    for doing, change in everything_that_changes(image, top).items():
        with pytest.raises(ImageInUse) as caught:
            await change()
        told = str(caught.value)
        assert told.startswith(f"cannot {doing.partition(',')[0]} {str(image)!r}: {holder} "), told
        assert "Cure: stop that machine first" in told
    assert content(image) == before
    assert left(image.parent) == {"disk", "top", "other"}


async def test_our_machine(qemu: str, tmp_path: Path) -> None:
    image, top = await make(tmp_path)
    disk = Disk(image, format="qcow2")
    async with qmpkit.running(MachineSpec(name="web", qemu=qemu, accel="tcg", disks=(disk,))) as vm:
        holder = f"machine 'web' (qemu-system-x86_64, pid {vm.pid})"
        await assert_refused(image, top, holder)
        found = await images.chain(top)
        assert [str(one) for one in found[1].holders] == [holder]
        assert found[1].in_use
        assert not found[0].in_use
    assert not (await images.info(image)).in_use
    assert (await images.check(image, "qcow2")).ok


async def test_a_holder_that_may_not_be_seen(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root's QEMU is to an ordinary user: the lock tells all the same."""
    image, top = await make(tmp_path)
    async with stranger(qemu, image):
        for module in ("details", "in_use", "replacing"):
            monkeypatch.setattr(f"qmpkit.images.{module}.holders_of", lambda path: ())
        found = await images.info(image)
        assert (found.in_use, found.holders) == (True, ())
        await assert_refused(image, top, "another process")


@pytest.mark.parametrize("name", [(), ("-name", "their vm,process=odd")])
async def test_a_strangers_qemu(qemu: str, tmp_path: Path, name: tuple[str, ...]) -> None:
    image, top = await make(tmp_path)
    async with stranger(qemu, image, *name) as pid:
        machine = f"machine 'their vm' (qemu-system-x86_64, pid {pid})"
        await assert_refused(image, top, machine if name else f"qemu-system-x86_64 (pid {pid})")


async def test_a_strangers_machine_found_under_another_name(qemu: str, tmp_path: Path) -> None:
    image, _ = await make(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(image)
    async with stranger(qemu, image) as pid:
        with pytest.raises(ImageInUse, match=f"pid {pid}"):
            await images.resize(link, "2MiB", "qcow2")


async def test_the_base_of_a_running_overlay(qemu: str, tmp_path: Path) -> None:
    """It may be read and built upon, but not changed."""
    image, top = await make(tmp_path)
    async with stranger(qemu, top) as pid:
        for change in (
            lambda: images.resize(image, "2MiB", "qcow2"),
            lambda: images.check(image, "qcow2", repair="leaks"),
            lambda: images.convert(
                tmp_path / "other", image, source_format="qcow2", format="qcow2", replace=True
            ),
        ):
            with pytest.raises(ImageInUse, match=f"pid {pid}\\) has it open"):
                await change()
        assert (await images.check(image, "qcow2")).ok
        await images.overlay(tmp_path / "second", image, "qcow2")
        await images.convert(image, tmp_path / "copy", source_format="qcow2", format="qcow2")


async def test_who_takes_it_between_our_look_and_qemu_imgs(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-img itself refuses then, and the holder is named all the same."""
    image, _ = await make(tmp_path)
    monkeypatch.setattr("qmpkit.images.in_use.image_locked", lambda path, for_writing: False)
    async with stranger(qemu, image) as pid:
        with pytest.raises(ImageInUse, match=f"pid {pid}"):
            await images.resize(image, "2MiB", "qcow2")
        with pytest.raises(ImageInUse, match=f"pid {pid}"):
            await images.convert(image, tmp_path / "new", source_format="qcow2", format="raw")


@pytest.mark.parametrize("itself", [False, True])
async def test_who_starts_on_the_target_in_the_middle(
    qemu: str, tmp_path: Path, draft: str, itself: bool
) -> None:
    """QEMU refuses, by its own lock: else it would write into a file without a name."""
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(16 << 20))
    target = await images.convert(
        source, tmp_path / "target", source_format="raw", format="qcow2", compress=True
    )
    if itself:
        source = target
    async with images.converting(
        source,
        target,
        source_format="qcow2" if itself else "raw",
        format="qcow2",
        compress=True,
        replace=True,
    ) as progress:
        async for fraction in progress:
            if fraction:
                break
        node = f"driver=qcow2,node-name=d,file.driver=file,file.filename={target}"
        argv = [qemu, "-M", "none", "-nodefaults", "-display", "none", "-blockdev", node]
        done = await trio.run_process(argv, check=False, capture_stderr=True)
        assert b'Failed to get "write" lock' in done.stderr
        assert progress.fraction < 1.0
    async with stranger(qemu, target):
        assert (await images.info(target)).in_use
    assert left(tmp_path) == {"source", "target"}


@pytest.mark.parametrize("kind", ["deep", "loop"])
async def test_a_machine_on_a_bad_chain_is_refused(qemu: str, tmp_path: Path, kind: str) -> None:
    base = await images.create(tmp_path / "0000", "1MiB", "qcow2")
    top = await images.overlay(tmp_path / "0001", base, "qcow2")
    template = top.read_bytes()
    if kind == "loop":
        base.write_bytes(template.replace(b"0000", b"0001"))
        words = f"the bases of '{top}' form a loop"
    else:
        for number in range(2, 1000):
            top = tmp_path / f"{number:04}"
            top.write_bytes(template.replace(b"0000", f"{number - 1:04}".encode()))
        words = f"the chain of '{top}' is deeper than 200 images"
    spec = MachineSpec(qemu=qemu, accel="tcg", disks=(Disk(top, format="qcow2"),))
    with pytest.raises(SpecInvalid, match=words):
        async with qmpkit.running(spec):
            raise AssertionError("it must not start")


async def test_an_image_of_the_store(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stranger runs on it is nowhere noted."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    await images.create(tmp_path / "disk.qcow2", "1MiB", "qcow2")
    store = images.Store(tmp_path / "store")
    base = await store.pull(tmp_path / "disk.qcow2")
    (tmp_path / "far").mkdir()
    top = tmp_path / "far" / "top.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base.path)]
    assert (await run([*words, str(top)])).status.success
    await images.create(tmp_path / "other.qcow2", "2MiB", "qcow2")
    (tmp_path / "other.qcow2").rename(tmp_path / "disk.qcow2")
    await store.pull(tmp_path / "disk.qcow2")  # the first one has no name now
    async with stranger(qemu, top, "-name", "guest=web"):
        report = await store.gc(gone=True)
        assert report.removed == ()
        (why,) = (kept.why for kept in report.kept if kept.image.digest == base.digest)
        assert why[0].startswith("machine 'web' (qemu-system-x86_64, pid ")
        with pytest.raises(ImageInUse, match=r"cannot remove .*machine 'web'"):
            await store.remove(base.digest, gone=True)
    assert (await store.gc()).removed == (base.path,)
