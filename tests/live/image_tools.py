"""What the tests of images share: the real qemu-img beside each QEMU."""

from __future__ import annotations

import random
from pathlib import Path

from qmpkit.process.tools import run

MIB = 1 << 20
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed")


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


async def wrote(qemu_img: str, image: Path, at: int, byte: int, length: int = 4096) -> None:
    """Write *length* bytes at *at* into a qcow2, as its guest would."""
    tool = Path(qemu_img).with_name("qemu-io")
    await said(str(tool), "-f", "qcow2", "-c", f"write -P {byte} {at} {length}", str(image))
