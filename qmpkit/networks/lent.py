"""A tap device on a bridge for who may not make one: QEMU's own helper opens it for us.

QEMU would run the helper itself, but not within its sandbox, where it starts no programs.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from qmpkit.errors import HostLacks
from qmpkit.process import tools

__all__ = ["lent_tap"]

PLACES = ("/usr/lib/qemu", "/usr/libexec", "/usr/local/libexec", "/usr/lib/qemu-kvm")
RULES = "/etc/qemu/bridge.conf"


async def lent_tap(bridge: str) -> int:
    """The descriptor of a new tap device on *bridge*, which is gone once nobody has it open.

    Raises HostLacks when there is no helper, or it refuses.  Cancelled, nothing is left.
    """
    helper = _helper()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            argv = [str(helper), "--use-vnet", f"--br={bridge}", "--fd=3"]
            done = await tools.run(argv, fds={3: theirs.fileno()}, name="qemu-bridge-helper")
        ours.setblocking(False)
        if not done.status.success:
            raise HostLacks(
                f"{helper} gives no tap device on {bridge!r}: {done.err.strip() or done.status}",
                f"echo 'allow {bridge}' | sudo tee -a {RULES}; sudo chmod u+s {helper}",
            )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise HostLacks(f"{helper} sent no tap device on {bridge!r}")
        os.set_inheritable(fds[0], False)
        return fds[0]


def _helper() -> Path:
    for place in PLACES:
        if (helper := Path(place, "qemu-bridge-helper")).exists():
            return helper
    raise HostLacks(
        "machines on a bridge need CAP_NET_ADMIN or QEMU's bridge helper, and neither is there",
        'serve the farm as root, or use kind = "segment"',
    )
