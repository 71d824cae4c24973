"""Images of strangers: what they name is not opened before somebody has looked at it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import images
from qmpkit.errors import ImageFailed, SpecInvalid
from tests.live.commands import COMMAND
from tests.live.image_tools import left, said

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("qemu_img")]


def everything_that_opens(image: Path) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each operation that has QEMU open what is below *image*."""
    new = image.with_name("new")
    return {
        "convert": lambda: images.convert(image, new, source_format="qcow2", format="raw"),
        "check": lambda: images.check(image, "qcow2"),
        "repair": lambda: images.check(image, "qcow2", repair="leaks"),
        "resize": lambda: images.resize(image, "+1MiB", "qcow2"),
        "make an overlay of": lambda: images.overlay(new, image, "qcow2"),
        "read": lambda: images.machine_for(image, write=True),
    }


async def assert_refused(image: Path, why: str) -> None:
    before = left(image.parent)
    for doing, ask in everything_that_opens(image).items():
        with trio.fail_after(5), pytest.raises(ImageFailed) as caught:
            await ask()
        assert str(caught.value).startswith(f"cannot {doing} {str(image)!r}: {why}"), doing
        assert "Cure: " in str(caught.value)
    assert left(image.parent) == before


async def made(qemu_img: str, image: Path, base: str) -> Path:
    await said(qemu_img, "create", "-qu", "-f", "qcow2", "-F", "raw", "-b", base, str(image), "1M")
    return image


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


async def test_no_host_is_asked(qemu_img: str, tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    host = json.dumps({"type": "inet", "host": "127.0.0.1", "port": str(port)})
    for base in (f"nbd://127.0.0.1:{port}/x", f'json:{{"driver":"nbd","server":{host}}}'):
        image = await made(qemu_img, tmp_path / "a.qcow2", base)
        await assert_refused(image, f"the base {base!r} of {str(image)!r} is no plain file")
        (shown,) = await images.chain(image)
        assert (shown.backing, shown.backing_path) == (base, None)
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_no_directory_is_copied(qemu_img: str, tmp_path: Path) -> None:
    image = await made(qemu_img, tmp_path / "a.qcow2", "fat:/etc/apt")
    await assert_refused(image, f"the base 'fat:/etc/apt' of {str(image)!r} is no plain file")


async def test_no_loop_is_followed(qemu_img: str, tmp_path: Path) -> None:
    one = await images.create(tmp_path / "one.qcow2", "1MiB", "qcow2")
    two = await images.overlay(tmp_path / "two.qcow2", one, "qcow2")
    await said(qemu_img, "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(two), str(one))
    await assert_refused(two, f"the bases of {str(two)!r} form a loop at {str(two)!r}")


def command(*words: str, cwd: Path) -> tuple[int, str]:
    argv = [*COMMAND, *words]
    ran = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("image", "convert", "evil.raw", "out.raw"), "--source-format"),
        (("image", "overlay", "out.raw", "evil.raw"), "--base-format"),
        (("image", "check", "evil.raw"), "--format"),
        (("image", "resize", "evil.raw", "2MiB"), "--format"),
        (("run", "evil.raw"), "--format"),
    ],
)
async def test_a_guest_that_wrote_a_header(
    qemu_img: str, tmp_path: Path, words: tuple[str, ...], option: str
) -> None:
    """Its disk is raw, and begins as an image would that shows a file of this host."""
    (tmp_path / "secret").write_bytes(b"secret".ljust(1 << 20, b"."))
    evil = await made(qemu_img, tmp_path / "evil.raw", str(tmp_path / "secret"))
    before = evil.read_bytes()
    status, told = await trio.to_thread.run_sync(lambda: command(*words, cwd=tmp_path))
    assert status != 0
    assert f"is that of a qcow2 image with the base {str(tmp_path / 'secret')!r}" in told
    assert f"Cure: state its format with {option}: raw if its guest may have written that" in told
    assert left(tmp_path) == {"secret", "evil.raw"}
    assert evil.read_bytes() == before
    assert command("image", "info", "evil.raw", cwd=tmp_path)[0] == 0  # which opens it alone
    if option == "--source-format":
        convert = (*words, "--source-format", "raw", "--format", "raw")
        assert command(*convert, cwd=tmp_path)[0] == 0
        assert (tmp_path / "out.raw").read_bytes().startswith(before)


async def test_no_machine_opens_what_is_elsewhere(qemu: str, qemu_img: str, tmp_path: Path) -> None:
    """The classic attack: a disk that shows its guest a file of this host."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    (folder := tmp_path / "images").mkdir()
    image = await made(qemu_img, folder / "a.qcow2", str(secret))
    spec = qmpkit.MachineSpec(
        qemu=qemu,
        accel="tcg",
        memory="16MiB",
        disks=[qmpkit.Disk(image, format="qcow2")],
        image_folders=[folder],
    )
    with pytest.raises(SpecInvalid, match="is outside the allowed folders"):
        async with qmpkit.running(spec):
            raise AssertionError("it must not start")
    async with qmpkit.running(attrs.evolve(spec, image_folders=[tmp_path])) as vm:
        assert vm.pid
