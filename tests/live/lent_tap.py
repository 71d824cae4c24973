"""Run by test_bridges in a network namespace: a machine on a bridge, without CAP_NET_ADMIN.

The right is given up by this process alone: what it starts as root, as QEMU's setuid helper
would be, has it again.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

import trio

from qmpkit import Supervisor
from qmpkit.farm.converge import up
from qmpkit.networks.devices import may_make_devices
from qmpkit.spec.farm_load import load_farm

CAP_NET_ADMIN, VERSION_3 = 12, 0x20080522


def give_up_net_admin() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("Ii", VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("6I", data.raw))
    words[0] &= ~(1 << CAP_NET_ADMIN)
    words[1] &= ~(1 << CAP_NET_ADMIN)
    assert libc.capset(header, ctypes.create_string_buffer(struct.pack("6I", *words))) == 0
    assert not may_make_devices()


async def main(farm: str) -> None:
    async with Supervisor("lab", keep=True) as lab:
        outcome = await up(lab, load_farm(farm))
        assert outcome.went_well, outcome
        (kept,) = lab.kept.values()
        assert kept.vm is not None
        (rx,) = await kept.vm.execute("query-rx-filter", {"name": "nic0"})
        ports = [path.name for path in Path("/sys/class/net/own/brif").iterdir()]  # noqa: ASYNC240
        print(len(ports), rx["name"])
        await lab.migrate(kept.name)
        assert kept.vm is not None and kept.member == f"{kept.name}~"
        ports = [path.name for path in Path("/sys/class/net/own/brif").iterdir()]  # noqa: ASYNC240
        print(len(ports))
        await lab.declare(kept.name, "stopped")
        await lab.forget(kept.name)


if __name__ == "__main__":
    give_up_net_admin()
    trio.run(main, sys.argv[1])
