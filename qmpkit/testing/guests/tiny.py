"""*tiny*: Debian's kernel with busybox and the guest agent, all in an initramfs.

Root shells with the prompt `tiny# ` on the serial port and tty1, the agent on its
virtio port, drivers loaded by what the machine has, now or plugged later.  The power
button (of ACPI, of a board without it, or a keyboard's power key) is obeyed unless
the kernel command line has `tiny.ignore_powerdown`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.testing.guests import cpio, kernel, libraries, store
from qmpkit.testing.guests.apt import Apt, AptFailed, Package
from qmpkit.testing.guests.architectures import TINY, TinyFacts

__all__ = ["PROMPT", "READY", "build_tiny"]

READY = "qmpkit tiny guest ready"
"""Printed on the serial console once the drivers are loaded."""

PROMPT = "tiny# "

_PACKAGES = ("busybox-static", "qemu-guest-agent")

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
    arch: str = "x86_64",
    *,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """The directory of the *tiny* guest for *arch*; built when missing.

    *arch* is x86_64 (whose kernel is `vmlinux`, or `vmlinuz` for a BIOS), aarch64 or
    riscv64 (whose kernel is `Image`); beside the kernel is `initrd`.  Some 35, 65 or
    130 MB are downloaded the first time.  With *refresh* Debian is asked for newer
    packages.  Safe to call from several processes at once; blocks, so off the loop.
    Raises HostLacks on a host that is not Debian, AptFailed with what apt said.
    """
    tiny = TINY[arch]
    link = store.guests_dir() / tiny.name
    recipe = _recipe()
    if not refresh and store.current(link).get("recipe") == recipe:
        return link.resolve()
    with store.locked(link.with_name(f".{link.name}.lock")):
        if refresh or store.current(link).get("recipe") != recipe:
            _build_now(arch, link, recipe, progress)  # else another process was faster
        return link.resolve()


def _build_now(arch: str, link: Path, recipe: str, progress: Callable[[str], None]) -> None:
    with _archive(TINY[arch], progress) as apt:
        packages = _packages(apt, TINY[arch].kernel)
        versions = {name: package.version for name, package in packages.items()}

        def build(scratch: Path) -> None:
            progress(f"fetching {len(packages)} packages")
            archives = apt.fetch(packages.values())
            progress("unpacking and packing")
            with tempfile.TemporaryDirectory(dir=apt.directory) as folder:
                apt.unpack(archives, Path(folder))
                _pack(arch, Path(folder), scratch)

        store.publish(link, {"recipe": recipe, "packages": versions}, build)


@contextmanager
def _archive(tiny: TinyFacts, progress: Callable[[str], None]) -> Iterator[Apt]:
    """apt for the first of the guest's releases that this host's mirror has whole, locked."""
    for release in tiny.releases:
        folder = release if tiny.debian == "amd64" else f"{release}-{tiny.debian}"
        apt = Apt(cache_dir() / "apt" / folder, release, architecture=tiny.debian)
        with apt.locked():
            progress(f"asking Debian's archive for {release}")
            try:
                apt.update()
            except AptFailed as error:
                if release == tiny.releases[-1]:
                    raise
                progress(f"this host's mirror fails: {str(error).splitlines()[0]}")
                continue
            yield apt
            return


def _packages(apt: Apt, newest_kernel: str) -> dict[str, Package]:
    """All that is unpacked; the kernel is spread over packages that name each other."""
    packages = apt.closure([newest_kernel, *_PACKAGES])
    wanted = _of_kernel(packages)
    while wanted:
        more = apt.show(wanted)
        packages |= more
        wanted = [name for name in _of_kernel(more) if name not in packages]
    return packages


def _of_kernel(packages: Mapping[str, Package]) -> list[str]:
    prefixes = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")
    return [n for p in packages.values() for n in p.depends if n.startswith(prefixes)]


def _recipe() -> str:
    """A digest of all that decides how the packages are turned into the guest."""
    folder = resources.files(__package__)
    names = ["tiny.py", "architectures.py", "cpio.py", "kernel.py", "libraries.py"]
    content = hashlib.sha256()
    for name in [*names, *(f"files/{name}" for name in sorted(_FILES))]:
        content.update(name.encode() + b"\0" + folder.joinpath(name).read_bytes())
    return content.hexdigest()[:16]


def _pack(arch: str, tree: Path, target: Path) -> None:
    image = _only(tree, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz").read_bytes()
    if arch == "x86_64":
        (target / "vmlinuz").write_bytes(image)
        (target / "vmlinux").write_bytes(kernel.vmlinux(image))
    else:
        (target / "Image").write_bytes(kernel.boot_image(image))
    tiny = TINY[arch]
    entries = [*_base(tree), *_agent(tree, arch), *_modules(tree, tiny), *_own_files(tiny)]
    (target / "initrd").write_bytes(_with_room(cpio.archive(entries)))


def _with_room(archive: bytes) -> bytes:
    """With zeros to the beginning of another page.

    QEMU puts an initrd at the end of a microvm's RAM, over the ACPI tables that are there but
    for what its last page leaves free.
    """
    page, word = 4096, 4
    return archive + bytes(-len(archive) % page + word)


def _only(tree: Path, *patterns: str) -> Path:
    """What one of *patterns* finds: each release has its own mind about /usr."""
    for pattern in patterns:
        for path in tree.glob(pattern):
            return path
    raise AptFailed(f"no package has {' or '.join(patterns)}")


def _base(tree: Path) -> list[cpio.Entry]:
    busybox = _only(tree, "bin/busybox", "usr/bin/busybox")
    entries = [cpio.regular("bin/busybox", busybox.read_bytes(), 0o755)]
    entries.append(cpio.link("bin/sh", "busybox"))
    entries += [cpio.directory(name) for name in ("proc", "sys", "root", "tmp", "sbin", "usr/bin")]
    entries.append(cpio.device("dev/console", 5, 1))
    return entries


def _agent(tree: Path, arch: str) -> list[cpio.Entry]:
    program = tree / "usr/sbin/qemu-ga"
    found, missing = libraries.library_closure([program], [tree], arch)
    if missing:
        raise AptFailed(f"no package of the guest agent's has {', '.join(missing)}")
    files = {"usr/sbin/qemu-ga": program, **found}
    return [cpio.regular(name, file.read_bytes(), 0o755) for name, file in files.items()]


def _modules(tree: Path, tiny: TinyFacts) -> list[cpio.Entry]:
    folder = _only(tree, "lib/modules/*", "usr/lib/modules/*")
    inside = kernel.built_in(folder)
    wanted = [name for name in tiny.modules.split() if name not in inside]
    chosen = kernel.module_closure(folder, kernel.read_modules(folder), wanted)
    place = f"lib/modules/{folder.name}"
    entries = [
        cpio.regular(f"{place}/{module.path}", kernel.module_content(folder, module))
        for module in chosen.values()
    ]
    entries.append(cpio.regular(f"{place}/modules.dep", kernel.modules_dep(chosen).encode()))
    entries.append(cpio.regular(f"{place}/modules.alias", kernel.modules_alias(chosen).encode()))
    return entries


def _own_files(tiny: TinyFacts) -> list[cpio.Entry]:
    folder = resources.files(__package__) / "files"
    return [
        cpio.regular(place, _file(folder.joinpath(name).read_bytes(), tiny), 0o755)
        for name, place in _FILES.items()
    ]


def _file(content: bytes, tiny: TinyFacts) -> bytes:
    return content.replace(b"@console@", tiny.console.encode())
