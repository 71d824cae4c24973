"""The guests that `scripts/demo` can show: what is started, and what is done in each."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

import qmpkit
from qmpkit import VM, Disk, MachineSpec, Overlay
from qmpkit.images import CloudInit, make_seed
from qmpkit.spec.network import Forward, UserNic
from qmpkit.testing import guests

__all__ = ["GUESTS", "Guest"]

GREETING = "the base image says hello"
USER = "grace"


@attrs.frozen
class Guest:
    """One kind of guest: its machines, what to ask them, and a way in where there is one."""

    specs: Callable[[Path], Awaitable[list[MachineSpec]]]
    greet: Callable[[VM], Awaitable[str]]
    log_in: Callable[[VM, Path], Awaitable[str]] | None = None


# tiny: Linux in an initramfs, with a disk beside it


async def tiny_specs(folder: Path) -> list[MachineSpec]:
    """Three machines from one profile, each with its own overlay of the base image."""
    base = Overlay(str(await trio.to_thread.run_sync(make_base, folder)), format="raw")
    profile = qmpkit.load_profile("tiny-vga")
    return [
        attrs.evolve(profile, name=name, disks=[_own_disk(folder, name, base)])
        for name in ("ada", "grace", "linus")
    ]


def make_base(folder: Path) -> Path:
    """A small ext4 image with one file in it; needs neither root nor a loop device."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "greeting").write_text(f"{GREETING}\n")
    base = folder / "base.img"
    run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(base), "16M"])
    return base


async def tiny_greet(vm: VM) -> str:
    """Read the base image in the guest, and write to the overlay."""
    script = "mount /dev/vda /mnt && cat /mnt/greeting && hostname > /mnt/mine && sync"
    done = await vm.agent.run(["sh", "-c", script], check=True)
    uname = await vm.agent.run(["uname", "-sr"], check=True)
    return f"{done.text.strip()} ({uname.text.strip()})"


# debian: a whole Debian on its own disk, told by cloud-init who it is


async def debian_specs(folder: Path) -> list[MachineSpec]:
    """Two machines, as many as boot in a minute without KVM, each with a seed of its own."""
    image = await trio.to_thread.run_sync(partial(guests.build_debian, progress=print))
    base = Overlay(str(image), format="qcow2")
    keys = await trio.to_thread.run_sync(new_key, folder)
    profile = attrs.evolve(qmpkit.load_profile("q35"), kernel=None, display="std")
    machines = []
    for name in ("ada", "linus"):
        init = CloudInit(hostname=name, user=USER, ssh_keys=keys)
        seed = Disk(await make_seed(folder / f"{name}.iso", init), format="raw", readonly=True)
        disks = [_own_disk(folder, name, base), seed]
        nic = UserNic(forwards=[Forward(0, 22)])
        machines.append(attrs.evolve(profile, name=name, disks=disks, nics=[nic]))
    return machines


def new_key(folder: Path) -> tuple[str, ...]:
    """A key made for this demo; none where OpenSSH is not installed."""
    if shutil.which("ssh-keygen") is None:
        return ()
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", str(folder / "key")])
    return ((folder / "key.pub").read_text(),)


async def debian_greet(vm: VM) -> str:
    """Who cloud-init made it."""
    script = '. /etc/os-release; echo "$PRETTY_NAME, host $(hostname), user $(id -un 1000)"'
    return (await vm.agent.run(["sh", "-c", script], check=True)).text.strip()


async def debian_log_in(vm: VM, folder: Path) -> str:
    """Run a command by ssh, through the port that QEMU forwards."""
    if shutil.which("ssh") is None:
        return "ssh is not installed here: sudo apt install openssh-client"
    # The server may be starting still: this waits for it.
    await vm.agent.run(["systemctl", "start", "ssh"], check=True)
    (way_in,) = await vm.forwards()
    options = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]
    command = ["ssh", *options, "-oBatchMode=yes", "-i", str(folder / "key")]
    command += ["-p", str(way_in.port), f"{USER}@{way_in.address}", "sudo id -un; uptime -p"]
    done = await trio.run_process(command, capture_stdout=True)
    sudo, up = done.stdout.decode().splitlines()
    return f"ssh -p {way_in.port} {USER}@{way_in.address}: {up}; sudo makes {USER} {sudo}"


def _own_disk(folder: Path, name: str, base: Overlay) -> Disk:
    return Disk(str(folder / f"{name}.qcow2"), format="qcow2", make=base)


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


GUESTS = {
    "tiny": Guest(tiny_specs, tiny_greet),
    "debian": Guest(debian_specs, debian_greet, debian_log_in),
}
