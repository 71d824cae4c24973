"""`qmpkit run IMAGE`: a stranger's image, with no profile at all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import subprocess
from pathlib import Path

import attrs
import pycdlib
import pytest
import trio

import qmpkit
from qmpkit import images
from qmpkit.testing.guests.boot_sector import BANNER, boot_disk, boot_sector
from tests.live.commands import COMMAND, ask, on, piped, rest, said, terminal
from tests.live.efi import EFI_BANNER, efi_disk
from tests.sizes import OLDEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST)]

ESCAPE, CTRL_C = b"\x1d", b"\x03"
MARK = "write -P 0x5a 512k 4k"  # what the guest would do, done by QEMU's own debugging command


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def qemu_img(*words: str) -> str:
    argv = ["qemu-img", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout


def marked(path: Path, format: str = "qcow2") -> bool:
    """Whether the guest that runs on *path* sees what `MARK` wrote."""
    raw = path.with_name("copy.raw")
    qemu_img("convert", "-f", format, "-O", "raw", str(path), str(raw))
    return raw.read_bytes()[512 << 10 : 516 << 10] == b"\x5a" * 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 that a BIOS boots; nothing of qmpkit has made it."""
    raw = tmp_path / "stranger.raw"
    raw.write_bytes(boot_disk())
    path = tmp_path / "a stranger's, image.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    raw.unlink()
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command puts what it throws away."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def options(qemu: str, tools: Path) -> list[str]:
    return [*on(qemu), "--memory=256MiB", "--powerdown-grace=0", f"--tools-socket={tools}"]


def mark(tools: Path) -> None:
    command = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "{MARK}"'
    assert ask(tools, "human-monitor-command", f"command-line={command}") == ""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def gone(pid: str) -> None:
    """Until that process has ended; it is nobody's child who would be told."""
    while await trio.Path(f"/proc/{pid}").exists():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_it_boots_and_stays_as_it_was(qemu: str, image: Path, scratch: Path) -> None:
    before, tools = checksum(image), scratch.parent / "tools"
    async with terminal("run", str(image), *options(qemu, tools)) as person:
        await person.expect("qcow2 (from its header), 1 MiB, booted by BIOS")
        await person.expect("changes are thrown away at the end (--keep FILE keeps them")
        await person.expect("pc-q35-")
        await person.expect("once the guest is up: ssh -p ")
        await person.expect(BANNER)
        assert names(scratch) == [], "QEMU has the overlay open, so its name is gone"
        await trio.to_thread.run_sync(mark, tools)
        await person.type(ESCAPE)
        await person.expect("Ctrl-C: stop")
        await person.type(CTRL_C)
        await person.expect("it was stopped on request after")
        assert await person.process.wait() == 0
    assert checksum(image) == before


async def test_headless_with_json(qemu: str, image: Path, scratch: Path) -> None:
    tools = scratch.parent / "tools"
    async with piped("run", str(image), *options(qemu, tools), "--json", "--port=0:80") as run:
        heard = await said(run, ": running\n")
        assert re.search(r"once the guest is up: ssh -p \d+ USER@127\.0\.0\.1\n", heard)
        assert re.search(r"127\.0\.0\.1:\d+ leads to the guest's tcp port 80\n", heard)
        run.send_signal(signal.SIGTERM)
        out = await rest(run.stdout)
        assert await run.wait() == 0
    assert json.loads(out)["machine"] == "a stranger's, image"


async def test_write_changes_the_image(qemu: str, image: Path, scratch: Path) -> None:
    tools = scratch.parent / "tools"
    async with piped("run", str(image), *options(qemu, tools), "--headless", "--write") as run:
        heard = await said(run, ": running\n")
        assert "the guest writes into the image itself\n" in heard
        assert names(scratch) == []
        await trio.to_thread.run_sync(mark, tools)
        run.send_signal(signal.SIGTERM)
        assert await run.wait() == 0
    assert marked(image)


async def test_kept_changes_are_there_the_next_time(qemu: str, image: Path, scratch: Path) -> None:
    before, tools, kept = checksum(image), scratch.parent / "tools", image.with_name("kept.qcow2")
    for turn in ("made", "used again"):
        words = [*options(qemu, tools), "--headless", f"--keep={kept}"]
        async with piped("run", str(image), *words) as run:
            heard = await said(run, ": running\n")
            assert f"changes are kept in {kept}; the image stays as it is\n" in heard
            if turn == "made":
                await trio.to_thread.run_sync(mark, tools)
            run.send_signal(signal.SIGTERM)
            assert await run.wait() == 0
        assert marked(kept), turn
    assert checksum(image) == before
    assert not marked(image)


async def test_an_image_in_use_names_its_holder(qemu: str, image: Path, scratch: Path) -> None:
    tools = scratch.parent / "tools"
    words = [*options(qemu, tools), "--headless", "--write", "--set=name=first"]
    async with piped("run", str(image), *words) as run:
        heard = await said(run, "first: running\n")
        pid = heard.partition("pid ")[2].split()[0]
        for mode in ([], ["--write"]):
            second = await trio.run_process(
                [*COMMAND, "run", str(image), "--headless", *mode],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            told = second.stderr.decode().splitlines()[-1]
            assert second.returncode == 2, told
            assert told.startswith("error: "), told
            assert "machine 'first'" in told
            assert f"pid {pid}" in told
        assert names(scratch) == []


async def test_a_killed_command_leaves_nothing(qemu: str, image: Path, scratch: Path) -> None:
    before, tools = checksum(image), scratch.parent / "tools"
    async with piped("run", str(image), *options(qemu, tools), "--headless") as run:
        heard = await said(run, ": running\n")
        pid = heard.partition("pid ")[2].split()[0]
        run.kill()
        assert await run.wait() == -signal.SIGKILL
        await gone(pid)
    assert names(scratch) == []
    assert checksum(image) == before


async def test_a_start_that_fails_leaves_nothing(qemu: str, image: Path, scratch: Path) -> None:
    ran = await trio.run_process(
        [*COMMAND, "run", str(image), *on(qemu), '--set=extra_args=["-nonsense"]'],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert ran.returncode == 1
    assert b"-nonsense: invalid option" in ran.stderr
    assert names(scratch) == []


async def test_a_user_comes_with_a_seed(qemu: str, image: Path, scratch: Path) -> None:
    tools, key = scratch.parent / "tools", scratch.parent / "id.pub"
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIN1ZE1xgkoVhIgB8hwV1iCTAS3SybqPCA9nEBrbhn9Kx"
    key.write_text(f"ssh-ed25519 {blob} me@here\n")
    words = [*options(qemu, tools), "--headless", "--user=me", f"--ssh-key={key}"]
    async with piped("run", str(image), *words) as run:
        heard = await said(run, ": running\n")
        assert re.search(r"ssh -p \d+ me@127\.0\.0\.1\n", heard)
        nodes = await trio.to_thread.run_sync(ask, tools, "query-named-block-nodes")
        (seed,) = [node for node in nodes if node["node-name"] == "qk-disk1"]
        assert seed["ro"]
        assert names(scratch) == [], "it holds what is nobody's business"
        run.send_signal(signal.SIGTERM)
        assert await run.wait() == 0


async def test_a_vmdk_and_a_disk_with_nothing_to_boot(
    qemu: str, image: Path, scratch: Path
) -> None:
    tools, other = scratch.parent / "tools", image.with_name("other.vmdk")
    qemu_img("create", "-f", "vmdk", str(other), "1M")
    async with piped("run", str(other), *options(qemu, tools), "--headless") as run:
        heard = await said(run, ": running\n")
        assert "vmdk (from its header), 1 MiB" in heard
        assert "warning: other: it may not boot: it has neither boot code nor an EFI" in heard
        run.send_signal(signal.SIGTERM)
        assert await run.wait() == 0


async def test_the_same_from_python(qemu: str, image: Path) -> None:
    before = checksum(image)
    wanted = await images.machine_for(image, overlay=image.with_name("work.qcow2"), memory="64MiB")
    spec = attrs.evolve(wanted, qemu=qemu, accel="tcg")
    async with qmpkit.running(spec) as vm:
        await vm.console.expect(BANNER)
        (ssh,) = await vm.forwards()
        assert (ssh.address, ssh.guest_port) == ("127.0.0.1", 22)
    assert checksum(image) == before
    assert names(image.parent) == [image.name, "work.qcow2"]


def bootable_cd(path: Path) -> Path:
    disc = pycdlib.PyCdlib()
    disc.new()
    code = boot_sector().ljust(2048, b"\0")
    disc.add_fp(io.BytesIO(code), len(code), "/BOOT.;1")
    disc.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4)
    disc.write(str(path))
    disc.close()
    return path


async def test_a_cd_is_booted_from_a_drive(qemu: str, tmp_path: Path, scratch: Path) -> None:
    disc = bootable_cd(tmp_path / "live.iso")
    async with terminal("run", str(disc), *options(qemu, tmp_path / "tools")) as person:
        await person.expect("live: what a CD shows on a screen only, this console does not show")
        await person.expect(BANNER)
        person.process.send_signal(signal.SIGTERM)
        await person.expect("it was stopped on request after")


async def test_an_efi_system_partition_alone_means_uefi(
    qemu: str, tmp_path: Path, scratch: Path
) -> None:
    disk = await trio.to_thread.run_sync(efi_disk, tmp_path / "efi.raw")
    before = checksum(disk)
    words = options(qemu, tmp_path / "tools")
    async with terminal("run", str(disk), *words) as person:
        await person.expect("raw (it has no header), 48 MiB, booted by UEFI")
        await person.expect(EFI_BANNER)
        assert names(scratch) == []
        person.process.send_signal(signal.SIGTERM)
        await person.expect("it was stopped on request after")
    assert checksum(disk) == before
