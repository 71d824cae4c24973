"""What the *debian* guest is made of: packages, and the files that are ours in it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

__all__ = ["MASKED", "PACKAGES", "RELEASE", "digest", "files", "write_tar"]

RELEASE = "bookworm"
"""Debian 12 on every host: under TCG, QEMU 7.2 crashes Debian 13's kernel at random."""

PACKAGES = (
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "qemu-guest-agent",
    "cloud-init",
    "cloud-guest-utils",  # growpart
    "fdisk",  # … which runs sfdisk
    "e2fsprogs",
    "openssh-server",
    "sudo",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "less",
)

# What `systemctl enable systemd-networkd` would link.
_UNITS = "/lib/systemd/system"
_ENABLED = {
    "dbus-org.freedesktop.network1.service": "systemd-networkd.service",
    "multi-user.target.wants/systemd-networkd.service": "systemd-networkd.service",
    "network-online.target.wants/systemd-networkd-wait-online.service": (
        "systemd-networkd-wait-online.service"
    ),
    "sockets.target.wants/systemd-networkd.socket": "systemd-networkd.socket",
}

# Work that an image has no use for, at a boot or while a test measures something.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-pstore.service",
)

_COMMAND_LINE = "ro quiet console=tty0 console=ttyS0 no_timer_check"

_GRUB = """\
# No menu and no wait: `quiet` and the serial console are in the command line.
set timeout=0
menuentry "Debian" {{
    linux /vmlinuz root=UUID={uuid} {command_line}
    initrd /initrd.img
}}
"""

_CLOUD = """\
# A seed on a disk labelled cidata, or none: nothing on the network is asked or waited for.
datasource_list: [ NoCloud, None ]
system_info:
  network:
    renderers: [ networkd ]
    activators: [ networkd ]
# RSA keys take a minute to find without KVM.
ssh_genkeytypes: [ ed25519, ecdsa ]
# Debian's lists without what is for other distributions, other clouds and packages
# that are not here: without KVM they cost seconds of every boot.
cloud_init_modules:
  [ seed_random, bootcmd, write-files, growpart, resizefs, disk_setup, mounts, set_hostname,
    update_hostname, update_etc_hosts, ca-certs, users-groups, ssh ]
cloud_config_modules:
  [ ssh-import-id, set-passwords, apt-configure, ntp, timezone, runcmd ]
cloud_final_modules:
  [ package-update-upgrade-install, write-files-deferred, scripts-vendor, scripts-per-once,
    scripts-per-boot, scripts-per-instance, scripts-user, phone-home, final-message,
    power-state-change ]
"""

# One NIC that is up is enough, and having none is no failure.
_ONLINE = """\
[Service]
ExecStart=
ExecStart=-/lib/systemd/systemd-networkd-wait-online --any --timeout=10
"""

# A power button pressed before logind listens is lost: an agent that answers says that it does.
_AGENT = """\
[Unit]
After=systemd-logind.service
"""

# cloud-init's own files are called 10-…: they win over this one.
_NETWORK = """\
[Match]
Name=e*

[Network]
DHCP=yes
"""

_MODULES = "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\n"


def files(uuid: str) -> dict[str, str]:
    """Our files by path below the root; *uuid* is the root file system's."""
    return {
        "etc/fstab": f"UUID={uuid} / ext4 errors=remount-ro 0 0\n",
        "etc/hostname": "debian\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n",
        "etc/cloud/cloud.cfg.d/90_image.cfg": _CLOUD,
        "etc/systemd/network/80-dhcp.network": _NETWORK,
        "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf": _ONLINE,
        "etc/systemd/system/qemu-guest-agent.service.d/logind.conf": _AGENT,
        "etc/initramfs-tools/conf.d/image": "MODULES=list\n",
        "etc/initramfs-tools/modules": _MODULES,
        "boot/grub/grub.cfg": _GRUB.format(uuid=uuid, command_line=_COMMAND_LINE),
    }


def links() -> dict[str, str]:
    """Our symbolic links by path below the root."""
    masked = dict.fromkeys(MASKED, "/dev/null")
    enabled = {name: f"{_UNITS}/{unit}" for name, unit in _ENABLED.items()}
    return {f"etc/systemd/system/{name}": to for name, to in {**masked, **enabled}.items()}


def write_tar(path: Path, contents: Mapping[str, str]) -> None:
    """A tar archive of *contents* and our links, everything root's."""
    with tarfile.open(path, "w") as archive:
        for name, text in contents.items():
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in links().items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)


def digest() -> str:
    """Of all that decides how the packages are turned into an image."""
    folder = resources.files(__package__)
    content = hashlib.sha256()
    for name in ("disk.py", "loader.py", "recipe.py", "tree.py"):
        content.update(name.encode() + b"\0" + folder.joinpath(name).read_bytes())
    return content.hexdigest()[:16]
