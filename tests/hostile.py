"""Images of strangers who mean harm: small files, written by hand.

What each of `REFERENCES` names is outside its own folder; `DAMAGED` have a header that no
program should believe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.unit.host.images_on_disk import qcow2, raw

__all__ = ["DAMAGED", "REFERENCES", "qed", "vmdk_text", "vmdk_within"]

MIB = 1 << 20
SECRET = "/etc/shadow"

_REFUSED_BY_QEMU = {  # (offset, what is written there) in a sound header of version 3
    "a huge L1 table": (36, struct.pack(">I", 0x7FFFFFFF)),
    "an L1 table out of line": (40, struct.pack(">Q", 12345)),
    "a size of 8 EiB": (24, struct.pack(">Q", (1 << 63) - 1)),
    "clusters of 2^63 bytes": (20, struct.pack(">I", 63)),
    "clusters of one byte": (20, struct.pack(">I", 0)),
    "a huge refcount table": (56, struct.pack(">I", 0xFFFFFFFF)),
    "a refcount table out of line": (48, struct.pack(">Q", 12345)),
    "four thousand million snapshots": (60, struct.pack(">I", 0xFFFFFFFF)),
    "a header of 4 GiB": (100, struct.pack(">I", 0xFFFFFFF8)),
    "an unknown cipher": (32, struct.pack(">I", 77)),
    "features of the future": (72, struct.pack(">Q", 1 << 40)),
    "version 99": (4, struct.pack(">I", 99)),
}


def qed(path: Path, backing: str, *, raw_base: bool = True) -> Path:
    """A qed image on *backing*."""
    features = 1 | (4 if raw_base else 0)
    head = b"QED\0" + struct.pack("<IIIQQQQQ", 65536, 4, 1, features, 0, 0, 65536, MIB)
    name = backing.encode()
    path.write_bytes((head + struct.pack("<II", 256, len(name))).ljust(256, b"\0") + name)
    return path


def vmdk_text(path: Path, extent: str, *, parent: str = "", kind: str = "FLAT") -> Path:
    """A vmdk that is a description alone, of what is in *extent*."""
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\n"
        f"parentCID={'fffffffe' if parent else 'ffffffff'}\n{hint}"
        f'createType="monolithicFlat"\nRW 2048 {kind} "{extent}" 0\n'
        'ddb.adapterType = "ide"\nddb.geometry.cylinders = "2"\n'
    )
    return path


def vmdk_within(path: Path, extent: str) -> Path:
    """A binary vmdk without capacity, whose description within is believed instead."""
    text = vmdk_text(path, extent).read_bytes()
    head = b"KDMV" + struct.pack("<IIQQQQ", 1, 3, 0, 128, 1, 20)
    path.write_bytes(head.ljust(512, b"\0") + text.ljust(20 * 512, b"\0"))
    return path


def _loop(folder: Path) -> Path:
    qcow2(folder / "b.qcow2", "a.qcow2", backing_format="qcow2", size=MIB)
    return qcow2(folder / "a.qcow2", "b.qcow2", backing_format="qcow2", size=MIB)


def _linked(folder: Path) -> Path:
    (folder / "base.raw").symlink_to(SECRET)
    return qcow2(folder / "a.qcow2", "base.raw", backing_format="raw", size=MIB)


def _below(folder: Path) -> Path:
    qcow2(folder / "b.qcow2", SECRET, backing_format="raw", size=MIB)
    return qcow2(folder / "a.qcow2", "b.qcow2", backing_format="qcow2", size=MIB)


def _old(folder: Path) -> Path:
    """As qcow, which is not qcow2, the one in the middle is opened with its base."""
    qcow2(folder / "b.qcow", SECRET, size=MIB, version=1)
    return qcow2(folder / "a.qcow2", "b.qcow", backing_format="qcow", size=MIB)


def _nameless(folder: Path) -> Path:
    """Its text has no magic, and QEMU believes it all the same once the format is recorded."""
    text = vmdk_text(folder / "b", SECRET).read_text().replace("# Disk DescriptorFile\n", "")
    (folder / "b").write_text("# hello\n" + text.replace("version=1\n", "x=1\n"))
    return qcow2(folder / "a.qcow2", "b", backing_format="vmdk", size=MIB)


def _on(name: str, format: str = "raw") -> Callable[[Path], Path]:
    return lambda folder: qcow2(folder / "a.qcow2", name, backing_format=format, size=MIB)


def _in(data_file: str) -> Callable[[Path], Path]:
    return lambda folder: qcow2(folder / "a.qcow2", data_file=data_file, size=MIB)


REFERENCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "a base": ("qcow2", _on(SECRET)),
    "a base by ..": ("qcow2", _on("../" * 30 + "etc/shadow")),
    "a base by file:": ("qcow2", _on(f"file:{SECRET}")),
    "a base by a link": ("qcow2", _linked),
    "a base of a base": ("qcow2", _below),
    "a base in no format": ("qcow2", _on("x.raw", "")),
    "a base in a format that is none": ("qcow2", _on("x.raw", "vvfat")),
    "a base of a base in the old format": ("qcow2", _old),
    "an extent without the usual words": ("qcow2", _nameless),
    "itself": ("qcow2", _on("a.qcow2", "qcow2")),
    "a loop": ("qcow2", _loop),
    "nbd": ("qcow2", _on("nbd://127.0.0.1:10809/x")),
    "nbd by its unix socket": ("qcow2", _on("nbd+unix:///x?socket=/run/x")),
    "ssh": ("qcow2", _on("ssh://root@127.0.0.1/etc/shadow")),
    "http": ("qcow2", _on("http://169.254.169.254/latest/meta-data")),
    "a directory as a disk": ("qcow2", _on("fat:rw:/etc")),
    "json of a file": ("qcow2", _on(f'json:{{"driver":"file","filename":"{SECRET}"}}')),
    "json of a block device": ("qcow2", _on('json:{"driver":"host_device","filename":"/dev/vda"}')),
    "a data file": ("qcow2", _in(SECRET)),
    "a data file by json": ("qcow2", _in(f'json:{{"driver":"file","filename":"{SECRET}"}}')),
    "a data file by nbd": ("qcow2", _in("nbd://127.0.0.1:10809/x")),
    "a base of qed": ("qed", lambda folder: qed(folder / "a.qed", SECRET)),
    "an extent": ("vmdk", lambda folder: vmdk_text(folder / "a.vmdk", SECRET)),
    "an extent by nbd": ("vmdk", lambda folder: vmdk_text(folder / "a.vmdk", "nbd://h/x")),
    "an extent over two lines": (
        "vmdk",
        lambda folder: vmdk_text(folder / "a.vmdk", SECRET, kind="FLAT\n"),
    ),
    "an extent told within": ("vmdk", lambda folder: vmdk_within(folder / "a.vmdk", SECRET)),
    "a parent of vmdk": (
        "vmdk",
        lambda folder: vmdk_text(raw(folder / "x.vmdk"), "x.vmdk", parent=SECRET),
    ),
}
"""By what they name: their format, and what makes one in a folder."""


def _damaged(at: int, what: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = qcow2(folder / "a.qcow2", size=MIB)
        content = bytearray(path.read_bytes())
        struct.pack_into(">IQQI", content, 36, 1, 65536, 131072, 1)
        struct.pack_into(">I", content, 96, 4)  # refcounts of 16 bits
        content[at : at + len(what)] = what
        path.write_bytes(content.ljust(4 * 65536, b"\0"))
        return path

    return make


DAMAGED: dict[str, Callable[[Path], Path]] = {
    name: _damaged(at, what) for name, (at, what) in _REFUSED_BY_QEMU.items()
}
"""Images in qcow2, by what is wrong with their header."""
