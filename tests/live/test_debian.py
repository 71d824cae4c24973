"""Debian on its own disk: boots by BIOS and by UEFI, takes its seed, obeys; its image stays whole.

In CI a farm boots the cached image (test_farm_debian); here `scripts/test --long` does, by both
firmwares on every QEMU.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, Disk, MachineSpec
from qmpkit.images import CloudInit, make_seed
from qmpkit.process.tools import run
from qmpkit.spec.network import Forward, UserNic
from qmpkit.testing import guests
from qmpkit.testing.guests.qemus import qemu_binaries
from tests.sizes import DEBIAN_BOOTS, LONG

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def image() -> Path:
    return guests.build_debian()


@pytest.mark.skipif(not LONG, reason="two minutes and more: scripts/test --long")
@pytest.mark.bound(300)  # two boots under TCG, which took up to 261 s
@pytest.mark.parametrize(("version", "firmware"), DEBIAN_BOOTS)
async def test_debian_boots_takes_its_seed_and_obeys(
    image: Path, tmp_path: Path, version: str, firmware: str | None
) -> None:
    qemu = (await trio.to_thread.run_sync(qemu_binaries)).get(version)
    if qemu is None:
        pytest.skip(f"needs QEMU {version}")
    before = await trio.to_thread.run_sync(_checksum, image)
    spec = attrs.evolve(await _spec(image, tmp_path), qemu=str(qemu), firmware=firmware)
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        by = await _says(vm, "[ -d /sys/firmware/efi ] && echo uefi || echo bios")
        assert by == (firmware or "bios")
        await _takes_its_seed(vm, tmp_path)
        assert await _says(vm, "systemctl is-system-running --wait") == "running"
        await _reboots(vm)
        await vm.powerdown()
        report = await vm.wait()
        assert report.cause is qmpkit.ExitCause.GUEST_SHUTDOWN
    assert await trio.to_thread.run_sync(_checksum, image) == before


def _checksum(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _spec(image: Path, folder: Path) -> MachineSpec:
    """Debian on an overlay that is twice as large, with a seed and a way in for ssh."""
    own = await qmpkit.images.overlay(folder / "own.qcow2", image, "qcow2")
    grown = await run(["qemu-img", "resize", "-q", "-f", "qcow2", str(own), "6G"])
    assert grown.status.success, grown.err
    init = CloudInit(hostname="ada", user="grace", ssh_keys=[await _new_key(folder)])
    seed = await make_seed(folder / "seed.iso", init)
    return attrs.evolve(
        qmpkit.load_profile("q35"),
        name="debian",
        accel="tcg",
        kernel=None,
        disks=[Disk(own, format="qcow2"), Disk(seed, format="raw", readonly=True)],
        nics=[UserNic(forwards=[Forward(0, 22)])],
    )


async def _new_key(folder: Path) -> str:
    """The public half of a new key, whose private half is *folder*/key."""
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh and ssh-keygen (Debian's openssh-client)")
    file = folder / "key"
    made = await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)])
    assert made.status.success, made.err
    return file.with_suffix(".pub").read_text()


async def _says(vm: VM, script: str) -> str:
    return (await vm.agent.run(["sh", "-c", script])).text.strip()


async def _takes_its_seed(vm: VM, folder: Path) -> None:
    """The user can log in with the key, and with nothing else, and is an administrator."""
    # Waits for the start that is under way: by then cloud-init has made the user.
    await vm.agent.run(["systemctl", "start", "ssh"], check=True)
    (way_in,) = await vm.forwards()
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "IdentitiesOnly": "yes",
    }
    ssh = ["ssh", "-p", str(way_in.port), *(f"-o{key}={value}" for key, value in options.items())]
    done = await run([*ssh, "-i", str(folder / "key"), "grace@127.0.0.1", "sudo hostname; id -un"])
    assert done.out.split() == ["ada", "grace"], done.err
    refused = await run([*ssh, "-i", "/dev/null", "grace@127.0.0.1", "true"])
    assert not refused.status.success
    assert "Permission denied" in refused.err
    # No account has a password: `*` and `!` are no hash.
    assert await _says(vm, "cut -d: -f2 /etc/shadow | tr -d '*!\\n'") == ""
    assert int(await _says(vm, "df --output=size -B1M / | tail -n1")) > 5000, "the disk's end"


async def _reboots(vm: VM) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = await _says(vm, boot)
    with vm.subscribe("RESET") as resets:
        await vm.agent.shutdown("reboot")
        await resets.next()
    await vm.agent.wait_ready()
    assert await _says(vm, boot) != before
    assert await _says(vm, "hostname") == "ada"
