"""Disks served for another backup program: one moment, and what has changed since another."""

from __future__ import annotations

import json
import stat
import struct
from contextlib import nullcontext
from pathlib import Path

import attrs
import pytest
import trio
import trustme

import qmpkit
from qmpkit import CommandRefused, ImageFailed, PulledDisk, SpecInvalid
from qmpkit.operations.block import pull_relay
from qmpkit.operations.block.backup_plan import dirty_bitmaps
from qmpkit.spec.block import DiskInterface
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import BLOCK, bare, holds, nothing_left, write
from tests.sizes import BACKUP_CANCELS, NEWEST, OLDEST

pytestmark = pytest.mark.live


async def fetched(disk: PulledDisk, target: Path) -> str:
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "raw", disk.uri, str(target)]
    await trio.run_process(argv)
    return str(target)


async def dirty(disk: PulledDisk, socket: Path) -> set[int]:
    """The blocks that the context says have changed."""
    image = f"driver=nbd,server.type=unix,server.path={socket},export={disk.export}"
    argv = ["qemu-img", "map", "--output=json", "--image-opts"]
    done = await trio.run_process(
        [*argv, f"{image},x-dirty-bitmap={disk.context}"], capture_stdout=True
    )
    found: set[int] = set()
    for extent in json.loads(done.stdout):
        if not extent["data"]:  # as qemu-img shows a bitmap that is taken for a map
            first = extent["start"] // BLOCK
            found |= set(range(first, first + extent["length"] // BLOCK))
    return found


async def bitmaps(vm: qmpkit.VM) -> set[str]:
    return {name for _, name in await dirty_bitmaps(vm.machine)}


@pytest.mark.qemus(*NEWEST)
async def test_what_is_fetched_is_of_one_moment(qemu: str, qemu_img: str, tmp_path: Path) -> None:
    folder = tmp_path / "pull"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2", "raw"), paused=True) as vm:
        for disk in ("disk0", "disk1"):
            await write(vm, disk, 0, 1)
        async with vm.backups.pulling(folder, checkpoint="one") as pull:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE(pull.socket.stat().st_mode) == 0o600
            for disk in ("disk0", "disk1"):
                await write(vm, disk, 0, 2)
                await write(vm, disk, 5, 2)
            for disk in ("disk0", "disk1"):
                file = await fetched(pull.disks[disk], tmp_path / f"{disk}.raw")
                await holds(file, "raw", {0: 1, 5: 0})
        assert not folder.exists()
        await nothing_left(vm)
        assert await bitmaps(vm) == {"qk-checkpoint-one@disk0"}
        async with vm.backups.pulling(folder, since="one", checkpoint="two") as pull:
            await write(vm, "disk0", 7, 3)
            assert await dirty(pull.disks["disk0"], pull.socket) == {0, 5}
            raw = pull.disks["disk1"]
            assert raw.context is None and "it has no checkpoint 'one'" in raw.why
            file = await fetched(pull.disks["disk0"], tmp_path / "again.raw")
            await holds(file, "raw", {0: 2, 5: 2, 7: 0})
        await vm.backups.drop_checkpoint("one")
        assert await bitmaps(vm) == {"qk-checkpoint-two@disk0"}
        await nothing_left(vm)


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_anywhere_nothing_is_left(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "pull"
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:

        async def pull() -> None:
            async with vm.backups.pulling(folder, checkpoint="one"):
                await trio.lowlevel.checkpoint()

        async def nothing() -> None:
            await nothing_left(vm)
            assert not folder.exists()
            assert await vm.execute("query-block-exports") == []
            await vm.backups.drop_checkpoint("one")
            assert await bitmaps(vm) == set()

        await cancel_at_every_checkpoint(pull, every=BACKUP_CANCELS, after=nothing)
        with pytest.raises(ValueError, match="mine"):
            async with vm.backups.pulling(folder, checkpoint="one"):
                raise ValueError("mine")
        assert await bitmaps(vm) == set(), "of no use to anybody"
        await nothing()


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_served_is_refused(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "pull"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        with pytest.raises(SpecInvalid) as refused:
            async with vm.backups.pulling(tmp_path / ("x" * 100), since="a/b", checkpoint="ä"):
                pass
        assert len(refused.value.faults) == 3
        folder.mkdir(mode=0o700)
        (folder / "mine").touch()
        with pytest.raises(ImageFailed, match="no private folder of such a backup"):
            async with vm.backups.pulling(folder):
                pass
        (folder / "mine").rename(folder / "disk0.fleece.qcow2")  # as a program that died leaves it
        async with vm.backups.pulling(folder, checkpoint="one"):
            pass
        with pytest.raises(SpecInvalid, match="there is 'one' already"):
            async with vm.backups.pulling(folder, checkpoint="one"):
                pass
        address = {"type": "unix", "data": {"path": str(tmp_path / "theirs")}}
        await vm.execute("nbd-server-start", {"addr": address})
        with pytest.raises(CommandRefused, match="already running"):
            async with vm.backups.pulling(folder):
                pass
        await nothing_left(vm)
        await vm.execute("nbd-server-stop")  # nobody else has


async def _fetched_once(vm: qmpkit.VM, folder: Path) -> None:
    async with vm.backups.pulling(folder / "pull") as pull:
        await fetched(pull.disks["disk0"], folder / "x.raw")


async def asked_for_all(stream: trio.SocketStream) -> None:
    """As a client that asks for more than a socket holds, and reads nothing of it."""
    await stream.receive_some(18)
    name = b"disk0"
    go = struct.pack(">QIII", 0x49484156454F5054, 7, 4 + len(name) + 2, len(name)) + name + b"\0\0"
    await stream.send_all(struct.pack(">I", 3) + go)
    await stream.receive_some(1)  # its answer begins
    for number in range(16):
        await stream.send_all(struct.pack(">IHHQQI", 0x25609513, 0, 0, number, 0, 4 << 20))


async def test_a_client_that_hangs_holds_up_neither_the_guest_nor_the_end(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=100)
        with trio.fail_after(20):
            async with vm.backups.pulling(tmp_path / "pull") as pull:
                silent = await trio.open_unix_socket(str(pull.socket))
                hanging = await trio.open_unix_socket(str(pull.socket))
                await asked_for_all(hanging)
                await write(vm, "disk0", 0, 2)
            await nothing_left(vm)
            await silent.aclose()
            await hanging.aclose()
            monkeypatch.setattr(pull_relay, "STALL", 0.1)
            async with vm.backups.pulling(tmp_path / "pull") as pull:
                hanging = await trio.open_unix_socket(str(pull.socket))
                await asked_for_all(hanging)
                await trio.sleep(0.3)
                await vm.resume()
                await vm.pause()  # QEMU answers its clients first
                await hanging.aclose()


@pytest.mark.parametrize("interface", ["virtio-blk", "virtio-scsi"])
@pytest.mark.qemus(*OLDEST)
async def test_a_disk_with_a_thread_is_served_where_qemu_outlives_it(
    qemu: str, qemu_img: str, interface: DiskInterface, tmp_path: Path
) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    disks = [attrs.evolve(spec.disks[0], iothread="one", interface=interface)]
    async with qmpkit.running(attrs.evolve(spec, disks=disks), paused=True) as vm:
        old = (await vm.execute("query-version"))["qemu"]["major"] < 9
        refused = pytest.raises(SpecInvalid, match="update QEMU") if old else nullcontext()
        with refused:
            await _fetched_once(vm, tmp_path)
        await nothing_left(vm)


def _certificates(folder: Path, authority: trustme.CA, side: str) -> Path:
    folder.mkdir()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / f"{side}-key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / f"{side}-cert.pem"))
    return folder


async def _fetched_by_tcp(address: str, target: Path, certificates: Path | None) -> str:
    """What qemu-img says; nothing when it has fetched all of disk0."""
    host, port = address.split(":")
    image = f"driver=nbd,server.type=inet,server.host={host},server.port={port},export=disk0"
    argv = ["qemu-img", "convert", "-O", "raw"]
    if certificates is not None:
        argv += ["--object", f"tls-creds-x509,id=tls,dir={certificates},endpoint=client"]
        image += ",tls-creds=tls"
    argv += ["--image-opts", image, str(target)]
    done = await trio.run_process(argv, capture_stderr=True, check=False)
    return done.stderr.decode() if done.returncode else ""


async def test_by_tcp_only_those_with_a_certificate_are_served(qemu: str, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    ours = _certificates(tmp_path / "server", authority, "server")
    client = _certificates(tmp_path / "client", authority, "client")
    stranger = _certificates(tmp_path / "stranger", other, "client")
    (stranger / "ca-cert.pem").write_bytes((client / "ca-cert.pem").read_bytes())
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 3, 5)
        pull = tmp_path / "pull"
        with pytest.raises(SpecInvalid, match="not served in clear"):
            async with vm.backups.pulling(pull, listen="127.0.0.1:0"):
                pass
        with pytest.raises(SpecInvalid, match=r"(?s)'x' is not an address.*server-key.pem is not"):
            async with vm.backups.pulling(pull, listen="x", tls=client):
                pass
        async with vm.backups.pulling(pull, listen="127.0.0.1:0", tls=ours) as it:
            assert it.address is not None
            assert it.disks["disk0"].uri == f"nbds://{it.address}/disk0"
            target = tmp_path / "fetched.raw"
            assert await _fetched_by_tcp(it.address, target, client) == ""
            await holds(str(target), "raw", {3: 5})
            assert "TLS" in await _fetched_by_tcp(it.address, target, None)
            assert await _fetched_by_tcp(it.address, target, stranger) != ""
        objects = await vm.execute("qom-list", {"path": "/objects"})
        assert not any("tls" in it["name"] for it in objects)
        await nothing_left(vm)
