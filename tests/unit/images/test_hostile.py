"""What hostile images name is refused before qemu-img is run, and before any guest starts."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.host.chain import walk_chain
from qmpkit.host.headers import read_header
from qmpkit.host.preflight import preflight
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import MachineSpec
from tests.hostile import REFERENCES, SECRET, qed, vmdk_text
from tests.unit.host.images_on_disk import qcow2, raw

REFUSED = "outside the allowed folders|is no plain file|form a loop|not recorded|is no image's"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    return place


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}


def everything(
    image: Path, format: str, folder: Path
) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each operation that would open what *image* names."""
    new, allowed = folder / "new", [folder]
    return {
        "chain": lambda: images.chain(image, format=format, allowed=allowed),
        "convert": lambda: images.convert(
            image, new, source_format=format, format="raw", allowed=allowed
        ),
        "check": lambda: images.check(image, format, allowed=allowed),
        "resize": lambda: images.resize(image, "+1MiB", format, allowed=allowed),
        "overlay": lambda: images.overlay(new, image, format, allowed=allowed),
        "compare": lambda: images.compare(image, format, image, format, allowed=allowed),
        "extents": lambda: images.extents(image, format, allowed=allowed),
        "measure": lambda: images.measure(image, format, "raw", allowed=allowed),
        "commit": lambda: images.commit(image, format, allowed=allowed),
        "bench": lambda: images.bench(image, format, allowed=allowed),
        "machine_for": lambda: images.machine_for(
            image, format=format, overlay=new, allowed=allowed
        ),
    }


@pytest.mark.parametrize("name", REFERENCES)
async def test_no_operation_opens_it(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no qemu-img here: whatever ran it would fail in another way."""
    format, make = REFERENCES[name]
    image = make(folder)
    before = content(folder)
    monkeypatch.setenv("PATH", str(folder))
    for doing, ask in everything(image, format, folder).items():
        with pytest.raises(ImageFailed, match=REFUSED):
            await ask()
            pytest.fail(doing)
    assert content(folder) == before


@pytest.mark.parametrize(
    "name", [name for name, (kind, _) in REFERENCES.items() if kind == "qcow2"]
)
def test_no_machine_starts_on_it(name: str, folder: Path) -> None:
    image = REFERENCES[name][1](folder)
    spec = MachineSpec(disks=(Disk(image, format="qcow2"),), image_folders=(str(folder),))
    (fault,) = [problem.fault for problem in preflight(spec)]
    assert fault.path == "disks[0].file"
    assert any(words in fault.message for words in REFUSED.split("|")), fault


@pytest.mark.parametrize("name", REFERENCES)
def test_no_machine_starts_on_an_overlay_of_it(name: str, folder: Path) -> None:
    format, make = REFERENCES[name]
    base = Overlay(make(folder), format=format)  # type: ignore[arg-type]
    disk = Disk(folder / "new", format="qcow2", make=base)
    (fault,) = [
        problem.fault
        for problem in preflight(MachineSpec(disks=(disk,), image_folders=(str(folder),)))
    ]
    assert fault.path == "disks[0].make.file"
    assert any(words in fault.message for words in REFUSED.split("|")), fault


# --- what is not refused


def test_what_is_in_the_folders_is_well(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    raw(tmp_path / "bases" / "x")
    raw(folder / "content")
    qcow2(folder / "middle", str(tmp_path / "bases" / "x"), backing_format="raw")
    top = qcow2(
        folder / "top", "./middle", backing_format="qcow2", data_file=str(folder / "content")
    )
    both = (str(folder), str(tmp_path / "bases"))
    spec = MachineSpec(disks=(Disk(top, format="qcow2"),), image_folders=both)
    assert preflight(spec) == ()
    (one,) = preflight(attrs.evolve(spec, image_folders=both[:1]))
    assert f"allow {str(tmp_path / 'bases')!r} too" in one.fault.hint


def test_a_base_that_the_spec_names_is_its_own_word(folder: Path, tmp_path: Path) -> None:
    base = raw(tmp_path / "base")
    make = Overlay(base, format="raw")
    spec = MachineSpec(
        disks=(Disk(folder / "top", format="qcow2", make=make),), image_folders=(str(folder),)
    )
    assert preflight(spec) == ()
    qcow2(folder / "top", str(base), backing_format="raw")  # as it is on the next start
    assert preflight(spec) == ()
    qcow2(folder / "top", str(raw(tmp_path / "other")), backing_format="raw")
    assert len(preflight(spec)) == 1


def test_a_raw_disk_may_hold_any_header(folder: Path) -> None:
    image = qcow2(folder / "disk", SECRET)
    assert walk_chain(image, "raw", [folder]).outside is None
    spec = MachineSpec(disks=(Disk(image, format="raw"),), image_folders=(str(folder),))
    assert preflight(spec) == ()


def test_a_folder_whose_name_only_begins_so_is_another(tmp_path: Path) -> None:
    (tmp_path / "images-of-others").mkdir()
    base = raw(tmp_path / "images-of-others" / "base")
    top = qcow2(tmp_path / "top", str(base), backing_format="raw")
    found = walk_chain(top, "qcow2", [tmp_path / "images"])
    assert found.outside is not None
    assert len(found.layers) == 1


async def test_a_data_file_that_another_has_open_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = raw(folder / "content")
    top = qcow2(folder / "top", data_file=str(folder / "content"))
    asked: dict[str, bool] = {}

    def locked(path: Path, *, for_writing: bool) -> bool:
        asked[path.name] = for_writing
        return path == data

    monkeypatch.setattr("qmpkit.host.check_files.image_locked", locked)
    (problem,) = preflight(MachineSpec(disks=(Disk(top, format="qcow2"),)))
    assert f"{str(data)!r} is in use" in problem.fault.message
    assert asked == {"content": True, "top": True}


# --- headers


def test_of_several_extensions_the_last_counts(folder: Path) -> None:
    """Else one would be shown to us, and another to QEMU."""
    image = qcow2(folder / "a", "b", backing_format="vmdk", data_file="hidden")
    content = bytearray(image.read_bytes())
    raw_format = struct.pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0")
    padding = struct.pack(">II", 0x12345678, 0) * 60
    known = bytes(content[104:160]).rstrip(b"\0").ljust(56, b"\0")
    content[104:1024] = (raw_format + padding + known).ljust(920, b"\0")
    content += raw_format  # behind the name of the base QEMU does not look
    image.write_bytes(content)
    found = read_header(image)
    assert (found.backing, found.backing_format, found.data_file) == ("b", "vmdk", "hidden")


def test_a_text_that_qemu_would_take_for_a_vmdk(folder: Path) -> None:
    for text, format in (
        ("# x\n  \n# y\nversion=1\n", "vmdk"),
        ("version=3\r\n", "vmdk"),
        ("version=4\n", ""),
        ("\nversion=1\n", ""),
        ("x\nversion=1\n", ""),
    ):
        (folder / "a").write_text(text, newline="")
        assert read_header(folder / "a").format == format, text


def test_what_qed_and_vmdk_name(folder: Path) -> None:
    found = read_header(qed(folder / "a", "b c"))
    assert (found.format, found.backing, found.backing_format) == ("qed", "b c", "raw")
    assert read_header(qed(folder / "a", "b", raw_base=False)).backing_format == ""
    found = read_header(vmdk_text(folder / "v", "x-flat.vmdk", parent="p"))
    assert (found.backing, found.backing_format, found.extents) == ("p", "vmdk", ("x-flat.vmdk",))
