"""A machine's store of UEFI variables: a copy of the empty one, whole or not there, its own."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest
import trio

from qmpkit.errors import ImageFailed
from qmpkit.images import drafts, varstore
from qmpkit.images.drafts import Placed
from qmpkit.images.prepare import prepared_disks
from qmpkit.images.varstore import place_store, private_store
from qmpkit.spec.block import Disk
from qmpkit.spec.firmware import Firmware, Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks

BLOCK = varstore._BLOCK


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the store is drafted: as a file without a name, or where that is impossible."""
    if request.param == "named":

        def refuse(folder: Path, child_fd: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "firmware"
    folder.mkdir()
    (folder / "empty.fd").write_bytes(b"_FVH" + bytes(4000))
    return folder / "empty.fd"


@pytest.fixture
def place(tmp_path: Path, draft: None) -> Path:
    """Where a store is to be; nothing else is in its directory."""
    (tmp_path / "machine").mkdir()
    return tmp_path / "machine/web.vars"


def left(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def content(file: Path | BinaryIO) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else os.pread(file.fileno(), 1 << 30, 0)


def write(path: Path, what: bytes) -> None:
    path.write_bytes(what)


def found(file: Path | BinaryIO) -> os.stat_result:
    return file.stat() if isinstance(file, Path) else os.fstat(file.fileno())


# --- one with a name


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o777])
async def test_a_copy_that_its_owner_alone_may_use(place: Path, template: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        placed = await place_store(place, template)
    finally:
        os.umask(before)
    assert content(place) == content(template)
    assert stat.S_IMODE(found(place).st_mode) == 0o600
    assert found(place).st_nlink == 1
    assert placed == Placed.of(place)
    assert left(place) == {"web.vars"}


@pytest.mark.parametrize("name", ["a,b", "two\nlines", "ünï", "b\udcff", "-x", "n" * 250])
async def test_any_name(place: Path, template: Path, name: str) -> None:
    placed = await place_store(place.with_name(name), template)
    assert placed.path.name == name
    assert content(placed.path) == content(template)


async def test_a_relative_name(
    place: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parent)
    assert (await place_store("web.vars", "../firmware/empty.fd")).path == place
    assert content(place) == content(template)


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (1,),
        (-BLOCK,),
        (-BLOCK - 1,),
        (-3 * BLOCK, 5, -3 * BLOCK),
        (BLOCK, -BLOCK, BLOCK, -7),
        (-2 * BLOCK, BLOCK),
    ],
    ids=str,
)
async def test_equal_whatever_is_zero_in_it(
    place: Path, template: Path, sizes: tuple[int, ...]
) -> None:
    """A negative size is that many zeros."""
    chance = random.Random(5)
    parts = [bytes(-size) if size < 0 else chance.randbytes(size) for size in sizes]
    write(template, b"".join(parts))
    await place_store(place, template)
    assert content(place) == content(template)
    with private_store(template) as private:
        assert content(private) == content(template)


async def test_zeros_take_no_room(place: Path, template: Path) -> None:
    """The stores of aarch64 are 64 MiB of nothing else, and a pool of memory for a private one."""
    write(template, b"_FVH")
    os.truncate(template, 64 * BLOCK)
    await place_store(place, template)
    with private_store(template) as private:
        for file in (found(place), found(private)):
            assert file.st_size == 64 * BLOCK
            assert file.st_blocks * 512 <= 2 * BLOCK


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "link"])
async def test_never_over_what_exists(place: Path, template: Path, kind: str) -> None:
    precious = place.parent.parent / "precious"
    write(precious, b"precious")
    put(place, kind, precious)
    with pytest.raises(ImageFailed) as caught:
        await place_store(place, template)
    assert str(caught.value) == (
        f"cannot copy the UEFI variables to {str(place)!r}: it exists already. "
        "Cure: choose another name, or remove it first"
    )
    assert left(place) == {"web.vars"}
    assert content(precious) == b"precious"
    if kind == "file":
        assert content(place) == b"precious"


def put(place: Path, kind: str, precious: Path) -> None:
    if kind == "file":
        write(place, b"precious")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(precious if kind == "link" else "nowhere")


async def test_not_over_what_appears_meanwhile(
    place: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = varstore._copy

    def copy(*args: object) -> None:
        write(place, b"precious")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(varstore, "_copy", copy)
    with pytest.raises(ImageFailed, match="it exists already"):
        await place_store(place, template)
    assert content(place) == b"precious"
    assert left(place) == {"web.vars"}


async def test_of_many_at_once_one_wins(place: Path, template: Path) -> None:
    outcomes: list[str] = []

    async def attempt() -> None:
        try:
            await place_store(place, template)
            outcomes.append("made")
        except ImageFailed as error:
            outcomes.append(error.stderr)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(attempt)
    assert sorted(outcomes) == [*["it exists already"] * 4, "made"]
    assert content(place) == content(template)
    assert left(place) == {"web.vars"}


@pytest.mark.parametrize(
    ("wrong", "words"), [("absent", "No such file or directory"), (".", "Is a directory")]
)
async def test_a_template_that_cannot_be_read(
    place: Path, template: Path, wrong: str, words: str
) -> None:
    with pytest.raises(ImageFailed) as caught:
        await place_store(place, template.parent / wrong)
    assert str(caught.value).startswith(
        f"cannot copy the UEFI variables to {str(place)!r}: {words}"
    )
    assert left(place) == set()


async def test_a_template_that_ends_in_an_error(
    place: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it has been written by then."""
    monkeypatch.setattr(varstore, "_copy", half)
    with pytest.raises(ImageFailed, match="No space left on device"):
        await place_store(place, template)
    assert left(place) == set()
    with pytest.raises(ImageFailed, match="No space left on device"):
        private_store(template)


def half(template: Path, target: object) -> None:
    target.write(b"half")  # type: ignore[attr-defined]
    raise OSError(28, "No space left on device")


async def test_no_directory(place: Path, template: Path) -> None:
    with pytest.raises(ImageFailed, match=r"there is no directory .*Cure: create it"):
        await place_store(place.parent / "absent/web.vars", template)


async def test_cancelled_at_every_checkpoint(place: Path, template: Path) -> None:
    def whole_or_not_there() -> None:
        assert left(place) <= {"web.vars"}
        if place.exists():
            assert content(place) == content(template)
            place.unlink()

    async def make() -> None:
        await place_store(place, template)

    async with leaks():
        assert await cancel_at_every_checkpoint(make, after=whole_or_not_there) >= 3


# --- a private one


def test_a_private_store_is_nobody_elses(template: Path) -> None:
    with leaks(), private_store(template) as one, private_store(template) as other:
        os.pwrite(one.fileno(), b"mine", 0)
        assert content(one)[:4] == b"mine"
        assert content(other) == content(template)
        assert b"mine" not in content(template)
        assert not os.get_inheritable(one.fileno()), "only who is given it has it"


def test_a_private_store_has_no_name(template: Path) -> None:
    with private_store(template) as store:
        assert str(Path(f"/proc/self/fd/{store.fileno()}").readlink()).startswith("/memfd:")
        assert os.fstat(store.fileno()).st_nlink == 0
    assert left(template) == {"empty.fd"}


def test_a_private_store_without_a_template(template: Path) -> None:
    with leaks(), pytest.raises(ImageFailed) as caught:
        private_store(template.with_name("absent"))
    assert str(caught.value) == (
        f"cannot read the empty UEFI variables of {str(template.with_name('absent'))!r}: "
        "No such file or directory."
    )


# --- for a start


class LaunchBroke(Exception):
    pass


@pytest.fixture
def spec(place: Path, template: Path) -> MachineSpec:
    return MachineSpec(firmware=Uefi("/code", template, place))


async def test_made_for_a_start_and_kept(spec: MachineSpec, place: Path, template: Path) -> None:
    async with prepared_disks(spec) as made:
        assert made.paths == (place,)
        made.keep()
    assert content(place) == content(template)


async def test_taken_away_when_the_start_fails(spec: MachineSpec, place: Path) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            raise LaunchBroke
    assert left(place) == set()


async def test_one_with_variables_in_it_stays_when_the_start_fails(
    spec: MachineSpec, place: Path
) -> None:
    write(place, b"boot entries")
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec) as made:
            assert made.paths == ()
            raise LaunchBroke
    assert content(place) == b"boot entries"


async def test_what_the_firmware_wrote_stays_when_the_start_fails(
    spec: MachineSpec, place: Path
) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            write(place, b"boot entries")
            raise LaunchBroke
    assert content(place) == b"boot entries"


async def test_a_store_that_cannot_be_made_takes_the_disks_with_it(
    spec: MachineSpec, place: Path
) -> None:
    spec = attrs.evolve(
        spec,
        disks=[Disk(place.with_name("disk"), format="raw", make="1MiB")],
        firmware=Uefi("/code", "/absent", place),
    )
    with pytest.raises(ImageFailed, match="copy the UEFI variables"):
        async with prepared_disks(spec):
            raise AssertionError("the block must not begin")
    assert left(place) == set()


@pytest.mark.parametrize("firmware", [None, "/bios", Uefi("/code", "/template")], ids=str)
async def test_nothing_to_make_costs_no_checkpoint(firmware: Firmware) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with prepared_disks(MachineSpec(firmware=firmware)) as made:
            assert made.paths == ()
    assert not scope.cancelled_caught


async def test_a_start_cancelled_at_every_checkpoint(spec: MachineSpec, place: Path) -> None:
    """Nothing is left of a cancelled one, and a finished one is taken away for the next."""
    finished: list[bool] = []

    async def prepare() -> None:
        async with prepared_disks(spec):
            await trio.lowlevel.checkpoint()
        finished.append(True)

    def nothing_or_all_of_it() -> None:
        assert left(place) == ({"web.vars"} if finished else set())
        place.unlink(missing_ok=True)
        finished.clear()

    async with leaks():
        assert await cancel_at_every_checkpoint(prepare, after=nothing_or_all_of_it) > 4
