"""*debian*: Debian 12 on a disk of its own that boots by BIOS and by UEFI, in one qcow2.

systemd, the guest agent, cloud-init and OpenSSH.  Nobody can log in until a seed
(`qmpkit.images.make_seed`) brings a user and a key; the agent answers without one.
Made by mmdebstrap, mke2fs, mtools and sfdisk in plain files: no loop device, and
no root where an ordinary user may have a user namespace.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from qmpkit._paths import cache_dir
from qmpkit.testing.guests import store
from qmpkit.testing.guests.apt import Apt
from qmpkit.testing.guests.debian import disk, loader, recipe, tree
from qmpkit.testing.guests.debian.programs import check_programs

__all__ = ["build_debian"]

Progress = Callable[[str], None]


def build_debian(*, refresh: bool = False, progress: Progress = lambda line: None) -> Path:
    """The qcow2 image of the *debian* guest, 3 GiB for its guest; built when missing.

    Takes one to two minutes and some 200 MB from Debian's archive the first time,
    nothing later.  With *refresh* Debian is asked for newer packages.  The image is
    shared: boot an overlay of it.  Safe to call from several processes at once;
    blocks, so off the loop.  Raises HostLacks with every program that is missing,
    AptFailed and BuildFailed with what the program said.
    """
    link = store.guests_dir() / "debian"
    wanted = recipe.digest()
    if not refresh and store.current(link).get("recipe") == wanted:
        return _image(link)
    check_programs()
    with store.locked(link.with_name(".debian.lock")):
        # Another process may have been faster.
        if refresh or store.current(link).get("recipe") != wanted:
            _build_now(link, wanted, progress)
        return _image(link)


def _image(link: Path) -> Path:
    # The real path: an overlay made today must not see another image after a refresh.
    return link.resolve() / disk.NAME


def _build_now(link: Path, wanted: str, progress: Progress) -> None:
    # Of killed builds: nobody else builds now, and an ordinary user needs more than rmtree.
    for leftover in link.parent.glob(f".{link.name}-*"):
        tree.remove(leftover)
    apt = Apt(cache_dir() / "apt" / recipe.RELEASE, recipe.RELEASE)
    with apt.locked():
        progress("asking Debian's archive")
        apt.update()
        versions = apt.solve(recipe.PACKAGES)
        loaders = apt.closure(loader.PACKAGES)
    versions |= {name: package.version for name, package in loaders.items()}
    facts = {"recipe": wanted, "packages": versions}
    # The same packages make the same image, but for the times in it.
    name = uuid.uuid5(uuid.NAMESPACE_OID, store.digest(facts))

    def build(scratch: Path) -> None:
        work = scratch / "work"
        work.mkdir()
        try:
            with apt.locked():
                boot = loader.make(apt, loaders.values(), str(name), work)
            archive = tree.install(str(name), work, progress)
            disk.assemble(archive, boot, str(name), scratch, progress)
        finally:
            tree.remove(work)

    store.publish(link, facts, build)
