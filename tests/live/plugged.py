"""What the tests of hotplug share: a machine as its host, QEMU, its guest and its spec see it."""

from __future__ import annotations

import re
from typing import Any

from qmpkit import VM
from qmpkit.operations.hotplug.unplug import PERIPHERAL, plugged_devices
from qmpkit.spec.argv import TOOLS
from qmpkit.spec.cpu_places import cpu_id
from qmpkit.spec.machine import channels
from qmpkit.spec.names import chardev_id, mac_of
from qmpkit.spec.parts import parts_of

__all__ = ["agreed", "guest_sees", "hmp", "places"]

# Waits until the guest has just these disks (by serial number) and NICs (by MAC and carrier);
# all by the shell itself, as each program that it starts takes long under TCG.
_LOOK = """
tries=0
while :; do
  have= missing=
  for it in /sys/block/vd*; do
    [ -e "$it" ] || continue
    read -r found <$it/serial; have="$have $found"
  done
  for it in /sys/block/sd*; do [ -e "$it" ] && have="$have scsi"; done
  for it in /sys/class/net/eth*; do
    [ -e "$it" ] || continue
    carrier=; read -r carrier 2>/dev/null <$it/carrier
    read -r found <$it/address; have="$have $found/$carrier"
  done
  for it in "$@"; do case "$have " in *" $it "*) ;; *) missing="$missing $it" ;; esac; done
  count=$#
  [ -z "$missing" ] && ( set -- $have; [ $# = $count ] ) && exit 0
  tries=$((tries+1)); [ $tries = 500 ] && { echo "has$have"; exit 1; }
  usleep 20000
done
"""
_NETDEV = re.compile(r"^(?: \\ )?(qk-[\w.-]+): index", re.MULTILINE)


async def hmp(vm: VM, line: str) -> str:
    """A command of the human monitor."""
    return str(await vm.execute("human-monitor-command", {"command-line": line}))


async def agreed(vm: VM, *, fdsets: int = 0) -> None:
    """What QEMU has is what a start of `vm.spec` would make, and nothing else."""
    parts = parts_of(vm.spec)

    def of(kind: str) -> set[str]:
        return {part.id for part in parts if part.kind == kind}

    cpus = {cpu_id(number) for number in vm.spec.cpu.added}
    assert of("device") | cpus == set(await plugged_devices(vm.machine))
    nodes = await vm.execute("query-named-block-nodes", {"flat": True})
    assert of("node") == {node["node-name"] for node in nodes}
    objects = await vm.execute("qom-list", {"path": "/objects"})
    assert of("object") == {it["name"] for it in objects if it["type"].startswith("child<")}
    assert of("netdev") == set(_NETDEV.findall((await hmp(vm, "info network")).replace("\r", "")))
    own = {chardev_id(channel) for channel in channels(vm.spec)}
    chardevs = {it["label"] for it in await vm.execute("query-chardev")}
    assert chardevs - {chardev_id(TOOLS)} == own | of("chardev")
    assert len(await vm.execute("query-fdsets")) == fdsets


async def guest_sees(vm: VM) -> None:
    """The guest has the disks and NICs of the spec, or will have in a moment."""
    want = [disk.serial or "?" for disk in vm.spec.disks if disk.interface == "virtio-blk"]
    want += ["scsi" for disk in vm.spec.disks if disk.interface == "virtio-scsi"]
    want += [f"{it.mac or mac_of(vm.name, it.id)}/{int(it.link)}" for it in vm.spec.nics]
    done = await vm.agent.run(["sh", "-c", _LOOK, "look", *want])
    assert done.ok, (done.text, want)


async def places(vm: VM) -> dict[str, Any]:
    """Where each device sits, by its id."""
    return {device: await _place(vm, device) for device in await plugged_devices(vm.machine)}


async def _place(vm: VM, device: str) -> list[Any]:
    path = f"{PERIPHERAL}/{device}"
    names = {it["name"] for it in await vm.execute("qom-list", {"path": path})}
    wanted = sorted(names & {"addr", "parent_bus", "scsi-id", "port", "chassis"})
    return [await vm.execute("qom-get", {"path": path, "property": name}) for name in wanted]
