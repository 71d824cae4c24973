"""Makes the template that both sides clone, and prints the commands for the peers.

`argv` starts a clone and `cold` boots the machine, with sockets as `@0@`, `@1@` … and the
overlay's file as `@overlay@`; `empty` is an overlay with nothing in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import trio

import qmpkit
from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.machine import MachineSpec, channels
from qmpkit.templates.specs import clone_spec, somebody
from qmpkit.testing.guests import PROMPT, build_tiny

FAR = 9000  # numbers that occur nowhere else in the command
TOUCH = "mount -t tmpfs -o size=90% tmpfs /mnt; dd if=/dev/zero of=/mnt/x bs=1M count={}"


async def main(folder: Path, profile: str, memory: str, touched: int) -> None:
    build_tiny()
    disk = qmpkit.Disk(folder / "data.qcow2", format="qcow2", make="1GiB")
    spec = qmpkit.load_profile(profile)
    nics = [qmpkit.UserNic()]
    spec = attrs.evolve(spec, accel="tcg", memory=memory, disks=[disk], nics=nics)

    async def settled(vm: qmpkit.VM) -> None:
        await vm.console.expect(PROMPT)
        await vm.console.send_line("until [ -e /run/settled ]; do usleep 20000; done; clear")
        await vm.console.expect(PROMPT)
        await vm.agent.wait_ready()
        if touched:
            await vm.agent.run(["sh", "-c", TOUCH.format(touched >> 20)], check=True)

    template = await qmpkit.make_template(spec, folder / "template", settled)
    empty = folder / "empty.qcow2"
    await trio.Path(empty).write_bytes(template.saved.overlays["disk0"])
    overlays = {"disk0": empty}
    clone = clone_spec(template.saved.private.spec, somebody(template.spec), overlays)
    load = {
        "template": str(template.path),
        "empty": str(empty),
        "argv": await command(clone, incoming=True, overlay=str(empty)),
        "cold": await command(attrs.evolve(spec, disks=clone.disks), overlay=str(empty)),
        "sockets": len(channels(clone)),
        "serial": channels(clone).index("serial0"),
    }
    print(json.dumps(load))


async def command(spec: MachineSpec, *, overlay: str, incoming: bool = False) -> list[str]:
    resolution = await resolve(spec)
    names = channels(resolution.spec)
    endpoints = {name: FdEndpoint(FAR + at) for at, name in enumerate(names)}
    argv = render(resolution.spec, resolution.facts, endpoints, incoming=incoming)
    for at in range(len(names)):
        argv = [word.replace(f"fd={FAR + at}", f"fd=@{at}@") for word in argv]
    return [word.replace(overlay, "@overlay@") for word in argv]


trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
