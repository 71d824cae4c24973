"""What is removed, and what stays because something may lead to it still."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.errors import HostLacks, ImageFailed, ImageInUse, SpecInvalid
from qmpkit.images import Image, Store, users
from qmpkit.images.drafts import Placed
from qmpkit.images.prepare import prepared_disks
from qmpkit.images.store import uses
from qmpkit.images.store.locks import held_folder
from qmpkit.images.store.uses import homes_of, registered
from qmpkit.process.entries import add
from qmpkit.process.tools import run
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.sizes import OVERLAY_CANCELS_EVERY

pytestmark = pytest.mark.usefixtures("spawner")


@pytest.fixture
def base(tmp_path: Path, store: Store, qcow2: bytes) -> Image:
    """An image in the store, named "base"."""
    return pulled(store, tmp_path, qcow2)


def pulled(store: Store, folder: Path, content: bytes) -> Image:
    (folder / "base.qcow2").write_bytes(content)
    return trio.run(store.pull, folder / "base.qcow2")


async def superseded(store: Store, folder: Path) -> None:
    """Let the name "base" mean another image."""
    (folder / "base.qcow2").write_bytes(b"y" * 512)
    await store.pull(folder / "base.qcow2")


async def kept_because(store: Store, image: Image) -> str:
    report = await store.gc()
    assert image.path.exists()
    assert report.removed == ()
    (why,) = (each.why for each in report.kept if each.image.digest == image.digest)
    return "; ".join(why)


async def test_what_has_a_name_stays(store: Store, base: Image) -> None:
    assert await kept_because(store, base) == "it is called base"


async def test_what_has_lost_its_name_goes(store: Store, tmp_path: Path, base: Image) -> None:
    await superseded(store, tmp_path)
    told = await store.gc(dry_run=True)
    assert (told.removed, base.path.exists()) == ((base.path,), True)
    report = await store.gc()
    assert report.removed == (base.path,)
    assert report.freed == told.freed > 0
    assert not base.path.exists()
    assert [image.names for image in await store.images()] == [("base",)]
    assert (await store.gc()).removed == ()


async def test_an_overlay_needs_its_base(store: Store, tmp_path: Path, base: Image) -> None:
    await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    await images.overlay(tmp_path / "top.qcow2", tmp_path / "web.qcow2", "qcow2")
    await superseded(store, tmp_path)
    why = await kept_because(store, base)
    assert f"'{tmp_path}/web.qcow2' is on it" in why
    assert f"'{tmp_path}/top.qcow2' is on it" in why
    with pytest.raises(ImageInUse, match=r"cannot remove .*web\.qcow2' is on it"):
        await store.remove(base.digest, gone=True)


async def test_made_by_a_machine_it_is_noted_too(store: Store, tmp_path: Path, base: Image) -> None:
    disk = Disk(
        str(tmp_path / "deep" / "vm.qcow2"),
        format="qcow2",
        make=Overlay(str(base.path), format=base.format),
    )
    (tmp_path / "deep").mkdir()
    spec = MachineSpec(name="vm", machine="q35", disks=[disk])
    async with prepared_disks(spec) as made:
        made.keep()
    await superseded(store, tmp_path)
    assert f"'{tmp_path}/deep/vm.qcow2' is on it" in await kept_because(store, base)


async def test_where_an_overlay_was_is_nothing(store: Store, tmp_path: Path, base: Image) -> None:
    """It may have been moved: only who knows better can say."""
    made = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    (tmp_path / "elsewhere").mkdir()
    made.rename(tmp_path / "elsewhere" / "web.qcow2")
    await superseded(store, tmp_path)
    why = await kept_because(store, base)
    assert why == f"'{made}', made on it, is not in its place: it was deleted or moved"
    with pytest.raises(ImageInUse, match="if that was deleted and not moved, say gone"):
        await store.remove(base.digest)
    assert (await store.gc(gone=True)).removed == (base.path,)


async def test_a_copy_beside_is_seen(store: Store, tmp_path: Path, base: Image) -> None:
    made = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    made.rename(tmp_path / "renamed.qcow2")
    await superseded(store, tmp_path)
    (kept,) = (each for each in (await store.gc(gone=True)).kept if not each.image.names)
    assert kept.why == (f"'{tmp_path}/renamed.qcow2' is on it",)


async def test_an_overlay_that_is_another_file_by_now(
    store: Store, tmp_path: Path, base: Image
) -> None:
    made = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    await images.convert(made, made, source_format="qcow2", format="qcow2", replace=True)
    await superseded(store, tmp_path)
    assert (await store.gc()).removed == (base.path,)


async def test_an_overlay_that_cannot_be_followed(
    store: Store, tmp_path: Path, base: Image
) -> None:
    made = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    words = ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", f"{tmp_path}/none", str(made)]
    assert (await run(words)).status.success
    await superseded(store, tmp_path)
    assert f"'{made}', made on it, may be on it still" in await kept_because(store, base)


async def test_an_overlay_that_was_not_made_leaves_no_note(
    store: Store, tmp_path: Path, base: Image
) -> None:
    with pytest.raises(ImageFailed):
        await images.overlay(tmp_path / "no" / "web.qcow2", base.path, base.format)
    await superseded(store, tmp_path)
    assert (await store.gc()).removed == (base.path,)


async def test_an_overlay_cancelled_at_every_checkpoint(
    store: Store, tmp_path: Path, base: Image
) -> None:
    """There is an overlay and the note of it, or neither."""
    top = tmp_path / "web.qcow2"

    def both_or_none() -> None:
        notes = list((store.path / "uses").glob("*/*"))
        assert len(notes) == top.exists()
        for path in (*notes, top):
            path.unlink(missing_ok=True)

    async def make() -> None:
        await images.overlay(top, base.path, base.format)

    async with leaks():
        assert (
            await cancel_at_every_checkpoint(make, every=OVERLAY_CANCELS_EVERY, after=both_or_none)
            > 4
        )


async def test_an_image_that_is_removed_meanwhile(
    store: Store, tmp_path: Path, base: Image
) -> None:
    """After the look at the base, and before the overlay is noted."""
    homes = homes_of([base.path])
    await store.remove("base")
    with pytest.raises(FileNotFoundError, match="removed from the image store in this moment"):
        async with registered(homes, tmp_path / "web.qcow2"):
            pytest.fail("there is nothing to build on")


async def test_a_store_that_may_only_be_read(
    store: Store,
    tmp_path: Path,
    base: Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # which root is never told

    monkeypatch.setattr(uses, "_note", refuse)
    await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    assert "the image store cannot note that" in caplog.text


async def test_while_an_overlay_is_made(store: Store, tmp_path: Path, base: Image) -> None:
    """Noted and not yet there is no overlay that is gone."""
    await superseded(store, tmp_path)
    async with registered(homes_of([base.path]), tmp_path / "web.qcow2"):
        report = await store.gc(gone=True)
        assert report.removed == ()
        (kept,) = (each for each in report.kept if not each.image.names)
        assert kept.why == (f"'{tmp_path}/web.qcow2' is being made on it",)
    assert (await store.gc(gone=True)).removed == (base.path,)


async def test_an_overlay_of_one_run_is_not_noted(
    store: Store, tmp_path: Path, base: Image
) -> None:
    folder = tmp_path / "qmpkit-0123456789ab.tmp"
    folder.mkdir()
    made = await images.overlay(folder / "disk.qcow2", base.path, base.format)
    assert Placed.of(made).path == made
    made.unlink()
    await superseded(store, tmp_path)
    assert (await store.gc()).removed == (base.path,)


async def test_disks_on_record_are_followed(store: Store, tmp_path: Path, base: Image) -> None:
    """Of a kept machine that does not run, made by a stranger's qemu-img."""
    (tmp_path / "far").mkdir()
    made = tmp_path / "far" / "disk"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base.path)]
    assert (await run([*words, str(made)])).status.success
    machines = tmp_path / "state" / "lab" / "machines"
    machines.mkdir(parents=True)
    spec = {"disks": [{"file": str(made), "format": "qcow2"}]}
    add(machines / "journal", {"web": json.dumps({"schema": 1, "spec": spec})})
    await superseded(store, tmp_path)
    assert await kept_because(store, base) == f"'{made}' is on it"
    add(machines / "journal", {"web": None})
    assert (await store.gc()).removed == (base.path,)


async def test_what_is_open_stays(store: Store, tmp_path: Path, base: Image) -> None:
    await superseded(store, tmp_path)
    code = "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    reader = await trio.lowlevel.open_process(
        [sys.executable, "-c", code, str(base.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    async with reader.stdout:
        async with reader.stdin:
            await reader.stdout.receive_some(1)
            assert f"(pid {reader.pid}) has it open" in await kept_because(store, base)
        await reader.wait()
    assert (await store.gc()).removed == (base.path,)


async def test_what_crashes_leave(store: Store, tmp_path: Path, base: Image) -> None:
    orphan = store.path / "sha256" / f"{'ab' * 32}.raw"
    orphan.write_bytes(bytes(512))
    draft = store.path / "records" / "x.json.draft"
    draft.touch()
    partial = store.path / "partial" / "0123"
    partial.mkdir()
    (partial / "data").write_bytes(bytes(4096))
    (store.path / "uses" / base.digest).mkdir()
    report = await store.gc()
    assert set(report.removed) == {orphan, draft, partial}
    assert report.freed >= 4096 + 512
    assert not any(path.exists() for path in report.removed)
    assert (await store.verify())[0].ok


async def test_an_image_without_its_record_may_be_a_base(
    store: Store, tmp_path: Path, base: Image
) -> None:
    made = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    (store.path / "records" / f"{base.digest}.json").unlink()
    assert await store.images() == ()
    assert (await store.gc(gone=True)).removed == ()
    made.unlink()
    assert (await store.gc(gone=True)).removed == (base.path,)


async def test_a_pull_under_way_is_left_alone(store: Store, base: Image) -> None:
    async with held_folder(store.path / "partial" / "0123"):
        assert (await store.gc()).removed == ()
        assert (store.path / "partial" / "0123").exists()


async def test_nothing_is_written_to_an_image_of_the_store(base: Image) -> None:
    """Not even by root, who may."""
    before = base.path.read_bytes()
    for change in (
        lambda: images.resize(base.path, "2GiB", base.format),
        lambda: images.check(base.path, base.format, repair="all"),
        lambda: images.convert(
            base.path, base.path, source_format="qcow2", format="qcow2", replace=True
        ),
    ):
        with pytest.raises(ImageFailed, match="it is in the image store, where others build"):
            await change()
    assert base.path.read_bytes() == before
    assert (await images.check(base.path, base.format)).ok


async def test_removing(store: Store, base: Image) -> None:
    with pytest.raises(SpecInvalid, match="there is no image 'bas' in the store"):
        await store.remove("bas")
    assert (await store.remove(base.digest[:10])).names == ("base",)
    assert await store.images() == ()
    assert [path for path in store.path.rglob("*") if path.is_file()] == [store.path / "lock"]


# --- overlays that nobody has told of


async def made_elsewhere(folder: Path, base: Image) -> Path:
    """By plain qemu-img, in a folder that no note names."""
    (folder / "far" / "away").mkdir(parents=True)
    path = folder / "far" / "away" / "web.qcow2"
    words = ["create", "-q", "-f", "qcow2", "-F", base.format, "-b", str(base.path), str(path)]
    assert (await run(["qemu-img", *words])).status.success
    return path


async def test_what_qemu_img_has_made_is_found(store: Store, tmp_path: Path, base: Image) -> None:
    made = await made_elsewhere(tmp_path, base)
    await superseded(store, tmp_path)
    assert (await store.gc(dry_run=True)).removed == (base.path,)  # it is not known
    look_in = [tmp_path / "far"]
    told = await store.gc(dry_run=True, look_in=look_in)
    assert told.removed == ()
    assert (await store.gc(dry_run=True)).removed == (base.path,)  # only told
    with pytest.raises(ImageInUse, match=f"'{made}' is on it"):
        await store.remove(base.digest, look_in=look_in)
    assert await kept_because(store, base) == f"'{made}' is on it"  # it is known now
    assert (await store.gc(look_in=look_in)).removed == ()
    made.unlink()
    assert (await store.gc(gone=True)).removed == (base.path,)


async def test_where_one_may_not_look_nothing_is_removed(
    store: Store, tmp_path: Path, base: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    await superseded(store, tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "closed.qcow2").write_bytes(b"QFI\xfb")

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("none", "base.qcow2"):
        with pytest.raises(SpecInvalid, match=f"look_in: '.*{name}' is no directory"):
            await store.gc(look_in=[tmp_path / name])
    monkeypatch.setattr(users, "has_base", refuse)
    with pytest.raises(HostLacks, match=r"closed\.qcow2' cannot be looked into: Permission"):
        await store.gc(look_in=[tmp_path / "far"])
    assert base.path.exists()


async def test_looking_ends_when_it_is_cancelled(
    store: Store, tmp_path: Path, base: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    await superseded(store, tmp_path)
    for number in range(100):
        (tmp_path / f"file{number}").touch()
    looked: list[Path] = []

    def slow(path: Path) -> bool:
        looked.append(path)
        time.sleep(0.05)
        return False

    monkeypatch.setattr(users, "has_base", slow)
    with trio.move_on_after(0.3) as scope:
        await store.gc(look_in=[tmp_path])
    assert scope.cancelled_caught
    assert 0 < len(looked) < 50
    assert base.path.exists()


async def test_what_is_not_understood_stays(
    store: Store, tmp_path: Path, base: Image, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is removed, and pulling it again mends it."""
    (store.path / "names" / "folder").mkdir()
    (store.path / "records" / "folder.json").mkdir()
    record = store.path / "records" / f"{base.digest}.json"
    record.write_text('{"schema": 1')
    assert (await store.gc()).removed == ()
    assert base.path.exists()
    assert await store.images() == ()
    assert caplog.text.count("pull its image again") >= 2
    assert (await store.pull(tmp_path / "base.qcow2")).digest == base.digest
    assert [image.names for image in await store.images()] == [("base",)]
