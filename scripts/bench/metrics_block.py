"""Disks: a full backup, the pause of a snapshot, and each operation on an image, in seconds.

`block.full_backup` is `vm.backups.run` of a machine's one disk into a new folder; when it
returns all of it is safe on disk (fsync) and its checksum is in the manifest.  Its peer
`convert` is `qemu-img convert` of the same image into a new file and an fsync of that, for
by itself qemu-img leaves all it has written to the kernel: `unsynced` is without the fsync,
which no backup may be, and so is shown and not judged.  --size is the image's MiB.

`block.snapshot_pause` is what a guest sees of a snapshot of two disks: one that writes to
both by turns without pause has noted its processor's clock after each write, and this is the
longest time between two of them while QEMU had the transaction.  Each run prints the longest
gap in all of `take` too (`longest`), and in as quiet a time before (`quiet`), in which this
host has let the guest wait as long.  Its peer is a script of the same QMP commands.

The rest are calls of `qmpkit.images` in a running program against qemu-img with Popen, and
for `convert` an fsync, since ours is safe on disk when it has its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from bench_sides import Result, compare, interleave, say, script
from writing_guest import boot_disk

MIB = 1 << 20
PIECE = 16  # MiB that are random; as many after them are a hole
CALLS = 3  # of each operation on an image in one run; their median is the run's figure
WRITER = {"writes": 500, "quiet": 0.3, "snapshots": 3, "after": 0.02}
OPERATIONS = ["create", "overlay", "info", "check", "map", "measure", "compare", "resize"]
OPERATIONS += ["rebase", "commit", "add_bitmap", "snapshot", "convert"]

RATIO = 1.11  # that a full backup may take of the time of the peer
PAUSE = 0.020  # seconds that a guest may wait for a snapshot
ADDED = 0.015  # seconds that an operation on an image may take above the peer


def measure(runs: int, size: int = 512) -> list[Result]:
    told = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True)
    say(told.stdout.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *full_backup(folder, runs, size),
            *snapshot_pause(folder, runs),
            *operations(folder, runs),
        ]


def full_backup(folder: Path, runs: int, size: int) -> list[Result]:
    image = folder / "disk.qcow2"
    made(image, size)
    load = json.dumps({"image": str(image), "folder": str(folder)})
    say(f"load: {load}, {size} MiB of random data in {image.stat().st_size} bytes")
    sides = {
        "qmpkit": script("ours/block_backup.py", load),
        "convert": script("peers/block_convert.py", load, "sync"),
        "unsynced": script("peers/block_convert.py", load, "no"),
    }
    figures = interleave(sides, runs)
    results = list(compare("block.full_backup", "full_backup", figures, ours="qmpkit"))
    image.unlink()
    say(f"block.full_backup: {results[0].ratio:.2f} of convert with fsync, limit {RATIO}")
    say(f"block.full_backup: {results[1].ratio:.2f} of convert without, which promises nothing")
    return results


def snapshot_pause(folder: Path, runs: int) -> list[Result]:
    images = [folder / "boot.qcow2", folder / "data.qcow2"]
    converted(boot_disk(), images[0])
    converted(bytes(len(boot_disk())), images[1])
    load = json.dumps({"images": [str(image) for image in images], **WRITER})
    say(f"load: {load}")
    sides = {
        "qmpkit": script("ours/block_snapshot.py", load),
        "script": script("peers/block_snapshot.py", load),
    }
    figures = interleave(sides, runs)
    results = list(compare("block.snapshot_pause", "snapshot_pause", figures, ours="qmpkit"))
    took, least = results[0].ours, min(run["snapshot_pause"] for run in figures["qmpkit"])
    said = f"{took * 1e3:.1f} ms, {least * 1e3:.1f} in the calmest run"
    say(f"block.snapshot_pause: {said}, limit {PAUSE * 1e3:.0f} ms")
    return results


def operations(folder: Path, runs: int) -> list[Result]:
    images = folder / "images"
    images.mkdir()
    for name in ("base", "other"):
        converted(os.urandom(MIB) + bytes(3 * MIB), images / f"{name}.qcow2")
    words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "top.qcow2"]
    subprocess.run(["qemu-img", *words], cwd=images, check=True)
    words = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 1M", "top.qcow2"]
    subprocess.run(words, cwd=images, stdout=subprocess.DEVNULL, check=True)
    load = json.dumps({"images": str(images), "folder": str(folder), "calls": CALLS})
    say(f"load: {load}")
    sides = {
        "qmpkit": script("ours/block_images.py", load),
        "qemu-img": script("peers/block_images.py", load),
    }
    figures = interleave(sides, runs)
    results = []
    for operation in OPERATIONS:
        (result,) = compare(f"block.{operation}", operation, figures, ours="qmpkit")
        added = (result.ours - result.theirs) * 1e3
        say(f"{result.metric}: peer + {added:.1f} ms, limit {ADDED * 1e3:.0f} ms")
        results.append(result)
    return results


def made(image: Path, size: int) -> None:
    """A qcow2 in which random data and holes of the same length take turns."""
    with tempfile.NamedTemporaryFile(dir=image.parent) as raw:
        for start in range(0, size, PIECE):
            raw.seek(2 * start * MIB)
            raw.write(os.urandom(min(PIECE, size - start) * MIB))
        raw.truncate(2 * size * MIB)
        raw.flush()
        words = ["convert", "-f", "raw", "-O", "qcow2", raw.name, str(image)]
        subprocess.run(["qemu-img", *words], check=True)


def converted(content: bytes, image: Path) -> None:
    """A qcow2 with this content."""
    with tempfile.NamedTemporaryFile(dir=image.parent) as raw:
        raw.write(content)
        raw.flush()
        words = ["convert", "-f", "raw", "-O", "qcow2", raw.name, str(image)]
        subprocess.run(["qemu-img", *words], check=True)
