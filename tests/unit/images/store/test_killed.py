"""Killed at any moment, whoever pulls or removes leaves a store that works."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.images import Store
from tests.sizes import STORE_KILLS
from tests.unit.images.store.server import Server

PULL = """
import sys, trio
from qmpkit import images
async def main():
    store = images.Store(sys.argv[1])
    print(flush=True)
    while True:
        await store.pull(sys.argv[2], refresh=True)
trio.run(main)
"""

GC = """
import sys, trio, pathlib
from qmpkit import images
async def main():
    store, disk = images.Store(sys.argv[1]), pathlib.Path(sys.argv[2])
    print(flush=True)
    for number in range(1, 250):
        disk.write_bytes(bytes([number]) * 512)  # what it was loses its name
        await store.pull(disk)
        await store.gc()
trio.run(main)
"""


async def killed(code: str, *argv: object, after: float) -> None:
    """Run a program and kill it so many seconds after it has begun."""
    words = [sys.executable, "-c", code, *map(str, argv)]
    env = {**os.environ, "NO_PROXY": "*"}
    program = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, env=env)
    assert program.stdout is not None
    async with program.stdout:
        try:
            assert await program.stdout.receive_some(1) == b"\n"
            await trio.sleep(after)
            assert program.poll() is None
        finally:
            program.kill()
            with trio.CancelScope(shield=True):
                await program.wait()


async def all_is_well(store: Store) -> None:
    for verified in await store.verify():
        assert verified.ok, verified


@pytest.mark.bound(900)
async def test_in_a_pull(server: Server, store: Store) -> None:
    content = random.Random(6).randbytes(1 << 20)
    url = server.put("/disk.raw.gz", gzip.compress(content, 1))
    for _ in range(STORE_KILLS):
        await killed(PULL, store.path, url, after=random.random() * 0.3)
        await all_is_well(store)
        assert (await store.pull(url)).digest == hashlib.sha256(content).hexdigest()
        await store.gc()
        assert list((store.path / "partial").iterdir()) == []
        await store.remove("disk")


@pytest.mark.bound(900)
async def test_in_a_gc(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(512))
    base = await store.pull(disk)
    overlay = await images.overlay(tmp_path / "web.qcow2", base.path, base.format)
    for _ in range(STORE_KILLS):
        await killed(GC, store.path, disk, after=random.random() * 0.3)
        await all_is_well(store)
        disk.write_bytes(b"z" * 512)  # it may have been killed while it wrote this
        await store.pull(disk)
        report = await store.gc()
        assert base.digest in {kept.image.digest for kept in report.kept}
        assert len(list((store.path / "sha256").iterdir())) == len(await store.images()) <= 2
    assert [image.path for image in await images.chain(overlay)] == [overlay, base.path]
