"""NICs that hear nothing: of a machine that waits for a guest, which is elsewhere as yet.

QEMU keeps a frame for a guest that does not run, and then reads no more; all that has been
waiting since would come when the guest does, though it has heard it where it was.  So what
comes is led into a chardev that drops it, from the first moment on: `set_link` would be late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qmpkit.spec.names import netdev_id
from qmpkit.spec.options import to_json

__all__ = ["silence_options", "silencer"]


def silencer(nic_id: str) -> str:
    """The `-object` that a NIC hears nothing by, and its chardev."""
    return f"qk-silent-{nic_id}"


def silence_options(nics: Iterable[str]) -> Iterator[str]:
    """The words of the command line for these NICs, by their ids (not with vhost)."""
    for nic in nics:
        name = silencer(nic)
        redirector = {"qom-type": "filter-redirector", "id": name, "netdev": netdev_id(nic)}
        yield from ("-chardev", f"null,id={name}")
        yield from ("-object", to_json({**redirector, "queue": "tx", "outdev": name}))
