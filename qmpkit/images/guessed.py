"""A format that nobody stated: taken from the header, unless a guest may have put that there.

The first sectors of a raw disk are its guest's to write.  With the header of a format
that names other files there, the guest would be shown any file of this host, or have
it copied, as soon as somebody took the header's word for it.
"""

from __future__ import annotations

from pathlib import Path

from qmpkit.host.chain import Chain
from qmpkit.host.headers import Header
from qmpkit.images.tool import Asked

__all__ = ["refuse_guessed_bases", "taken_format"]

# Whoever names a file like that says what it is.
_ENDINGS = {"qcow2": (".qcow2", ".qcow"), "qcow": (".qcow",), "vmdk": (".vmdk",), "qed": (".qed",)}


def taken_format(asked: Asked, header: Header, *, option: str = "") -> str:
    """The format of an image that nobody stated; `ImageFailed` when it has to be stated.

    *option* is what states it, for the error: `--format`.
    """
    if named := _named_by_a_guest(asked.path, header):
        with_what = f" with {option}" if option else ""
        raise asked.failed(
            f"its header is that of a {header.format} image {named}, and its name does not end in "
            f"{_ENDINGS[header.format][0]}",
            f"state its format{with_what}: raw if its guest may have written that header, "
            f"{header.format} if you made this image",
        )
    return header.format or "raw"


def refuse_guessed_bases(asked: Asked, chain: Chain) -> None:
    """`ImageFailed` when QEMU would have to guess a base's format, and may guess such a one."""
    for above, base in zip(chain.layers, chain.layers[1:], strict=False):
        if above.header.backing_format:
            continue
        if named := _named_by_a_guest(base.path, base.header):
            rebase = f"qemu-img rebase -u -b {above.header.backing!r} {str(above.path)!r} -F"
            raise asked.failed(
                f"{str(above.path)!r} does not record the format of its base {str(base.path)!r}, "
                f"whose header is that of a {base.header.format} image {named}",
                f"record it: {rebase} raw if its guest may have written that header, "
                f"{base.header.format} if you made that image",
            )


def _named_by_a_guest(path: Path, header: Header) -> str:
    """The file that the header leads to, in words; "" when there is none or it is believed."""
    endings = _ENDINGS.get(header.format)
    if endings is None or path.name.lower().endswith(endings):
        return ""
    if header.format != "qcow2":  # where the name is, only QEMU reads
        return "which may name other files"
    if header.backing:
        return f"with the base {header.backing!r}"
    return f"with its content in {header.data_file!r}" if header.data_file else ""
