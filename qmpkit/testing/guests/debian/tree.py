"""The guest's file system: installed by mmdebstrap, with files that belong to many users."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from qmpkit.testing.guests import sources
from qmpkit.testing.guests.debian import recipe
from qmpkit.testing.guests.debian.programs import as_owner, in_own_mounts, run

__all__ = ["install", "remove", "unpack"]

# What belongs to the host that installed it (its keys, name and mirrors' key files),
# what only root could make and the kernel makes anyway, and what an image this small
# has no use for.
_LEFT_OUT = (
    "./dev/*",
    "./etc/apt/sources.list*",
    "./etc/resolv.conf",
    "./etc/ssh/ssh_host_*",
    "./usr/share/doc/*/*",
    "./usr/share/info/*",
    "./usr/share/locale/*/LC_MESSAGES",
    "./usr/share/man/*/*",
    "./vmlinuz.old",
    "./initrd.img.old",
)


def install(uuid: str, work: Path, progress: Callable[[str], None]) -> Path:
    """Install the recipe's packages with our files among them; gives a tar archive in *work*."""
    host = sources.host_codename()
    archives = sources.for_release(sources.host_sources(), host, recipe.RELEASE)
    mirrors = work / "mirrors.sources"
    mirrors.write_text(sources.render(archives))
    own = work / "own.tar"
    recipe.write_tar(own, recipe.files(uuid))
    target = work / "tree.tar"
    command = ["mmdebstrap", "--variant=minbase", "--architectures=amd64"]
    command.append(f"--include={','.join(recipe.PACKAGES)}")
    # Before the packages, because the initramfs is made while they are installed.
    command.append(f"--essential-hook=tar-in {own} /")
    run(
        in_own_mounts([*command, recipe.RELEASE, str(target), str(mirrors)]),
        progress=lambda line: progress(line.removeprefix("I: ")),
        # Root's build leaves its files where the next one removes them; an ordinary
        # user's runs under ids that may not even look into the cache directory.
        env={"TMPDIR": str(work)} if os.geteuid() == 0 else {},
    )
    return target


def unpack(archive: Path, target: Path) -> None:
    """Unpack what `install` gave into the new directory *target*, owners and all."""
    target.mkdir()
    left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    words = ["--numeric-owner", "--xattrs", "--xattrs-include=*", *left_out]
    run(as_owner(["tar", "--extract", "-C", str(target), "-f", str(archive), *words]))
    last = target.with_name("last.tar")
    recipe.write_tar(last, {"etc/apt/sources.list.d/debian.sources": _guest_sources()})
    run(as_owner(["tar", "--extract", "-C", str(target), "-f", str(last)]))
    stub = target / "etc/resolv.conf"
    run(as_owner(["ln", "-s", "../run/systemd/resolve/stub-resolv.conf", str(stub)]))


def _guest_sources() -> str:
    """The host's mirrors for the guest, which has Debian's keys but not the host's files."""
    host = sources.host_codename()
    found = sources.for_release(sources.host_sources(), host, recipe.RELEASE)
    return sources.render(
        source if "PGP" in source.signed_by else attrs.evolve(source, signed_by="")
        for source in found
    )


def remove(work: Path) -> None:
    """Remove *work* with all files in it, whoever owns them; nothing that is mounted there."""
    run(as_owner(["rm", "-rf", "--one-file-system", "--", str(work)]))
