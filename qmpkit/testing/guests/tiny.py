"""*tiny*: Debian's cloud kernel with busybox and the guest agent, all in an initramfs.

Root shells with the prompt `tiny# ` on ttyS0 and tty1, the agent on its virtio
port, drivers loaded by what the machine has, now or plugged later.  The ACPI
power button is obeyed unless the kernel command line has `tiny.ignore_powerdown`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.testing.guests import cpio, kernel, libraries, store
from qmpkit.testing.guests.apt import Apt, AptFailed

__all__ = ["PROMPT", "READY", "RELEASE", "build_tiny"]

READY = "qmpkit tiny guest ready"
"""Printed on the serial console once the drivers are loaded."""

PROMPT = "tiny# "

RELEASE = "bookworm"
"""Debian 12 on every host: under TCG, QEMU 7.2 crashes Debian 13's kernel at random."""

_PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "qemu-guest-agent")

# What a virtual machine of ours can have, and what a test wants to mount.
_MODULES = """
virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_scsi virtio_balloon virtio_rng
virtio_mem virtio_pmem virtio_input vmw_vsock_virtio_transport sd_mod sr_mod button evdev
pvpanic_pci pvpanic_mmio qemu_fw_cfg isofs vfat nls_ascii nls_cp437 fuse virtiofs overlay loop
squashfs crc32c_intel
"""

_FILES = {  # our file → its place in the guest
    "init": "init",
    "inittab": "etc/inittab",
    "rc": "etc/rc",
    "nic": "etc/nic",
    "dhcp": "etc/dhcp",
    "agent": "etc/agent",
    "powerbutton": "etc/acpi/PWRF/00000080",
    "shutdown": "sbin/shutdown",
    "mdev.conf": "etc/mdev.conf",
    "port": "etc/port",
    "profile": "etc/profile",
}


def build_tiny(
    *, refresh: bool = False, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """The directory of the *tiny* guest: `vmlinux`, `vmlinuz`, `initrd`; built when missing.

    Some 35 MB are downloaded the first time.  With *refresh* Debian is asked
    for newer packages.  Safe to call from several processes at once; blocks, so
    off the loop.  Raises HostLacks on a host that is not Debian, AptFailed with
    what apt said.
    """
    link = store.guests_dir() / "tiny"
    recipe = _recipe()
    if not refresh and store.current(link).get("recipe") == recipe:
        return link.resolve()
    with store.locked(link.with_name(".tiny.lock")):
        if not refresh and store.current(link).get("recipe") == recipe:
            return link.resolve()  # another process was faster
        return _build_now(link, recipe, refresh, progress)


def _build_now(link: Path, recipe: str, refresh: bool, progress: Callable[[str], None]) -> Path:
    apt = Apt(cache_dir() / "apt" / RELEASE, RELEASE)
    with apt.locked():
        progress("asking Debian's archive")
        apt.update()
        packages = apt.closure(_PACKAGES)
        packages |= apt.show([n for p in packages.values() for n in p.depends if _is_kernel(n)])
        versions = {name: package.version for name, package in packages.items()}

        def build(scratch: Path) -> None:
            progress(f"fetching {len(packages)} packages")
            archives = apt.fetch(packages.values())
            progress("unpacking and packing")
            with tempfile.TemporaryDirectory(dir=apt.directory) as folder:
                apt.unpack(archives, Path(folder))
                _pack(Path(folder), scratch)

        return store.publish(link, {"recipe": recipe, "packages": versions}, build)


def _is_kernel(name: str) -> bool:
    return name.startswith("linux-image-")


def _recipe() -> str:
    """A digest of all that decides how the packages are turned into the guest."""
    folder = resources.files(__package__)
    names = ["tiny.py", "cpio.py", "kernel.py", "libraries.py"]
    content = hashlib.sha256()
    for name in [*names, *(f"files/{name}" for name in sorted(_FILES))]:
        content.update(name.encode() + b"\0" + folder.joinpath(name).read_bytes())
    return content.hexdigest()[:16]


def _pack(tree: Path, target: Path) -> None:
    image = next((tree / "boot").glob("vmlinuz-*")).read_bytes()
    (target / "vmlinuz").write_bytes(image)
    (target / "vmlinux").write_bytes(kernel.vmlinux(image))
    entries = [*_base(tree), *_agent(tree), *_modules(tree), *_own_files()]
    (target / "initrd").write_bytes(cpio.archive(entries))


def _base(tree: Path) -> list[cpio.Entry]:
    busybox = tree / "bin/busybox"
    names = ("sh",)
    entries = [cpio.regular("bin/busybox", busybox.read_bytes(), 0o755)]
    entries += [cpio.link(f"bin/{name}", "busybox") for name in names]
    entries += [cpio.directory(name) for name in ("proc", "sys", "root", "tmp", "sbin", "usr/bin")]
    entries.append(cpio.device("dev/console", 5, 1))
    return entries


def _agent(tree: Path) -> list[cpio.Entry]:
    program = tree / "usr/sbin/qemu-ga"
    found, missing = libraries.library_closure([program], [tree])
    if missing:
        raise AptFailed(f"no package of the guest agent's has {', '.join(missing)}")
    files = {"usr/sbin/qemu-ga": program, **found}
    return [cpio.regular(name, file.read_bytes(), 0o755) for name, file in files.items()]


def _modules(tree: Path) -> list[cpio.Entry]:
    folder = next((tree / "lib/modules").iterdir())
    chosen = kernel.module_closure(folder, kernel.read_modules(folder), _MODULES.split())
    place = f"lib/modules/{folder.name}"
    entries = [
        cpio.regular(f"{place}/{module.path}", (folder / module.path).read_bytes())
        for module in chosen.values()
    ]
    entries.append(cpio.regular(f"{place}/modules.dep", kernel.modules_dep(chosen).encode()))
    entries.append(cpio.regular(f"{place}/modules.alias", kernel.modules_alias(chosen).encode()))
    return entries


def _own_files() -> list[cpio.Entry]:
    folder = resources.files(__package__) / "files"
    return [
        cpio.regular(place, folder.joinpath(name).read_bytes(), 0o755)
        for name, place in _FILES.items()
    ]
