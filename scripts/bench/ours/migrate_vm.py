"""Our side of the group `migrate`: `vm.migrate`, again and again."""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import trio

from qmpkit import VM, Cpu, Disk, MachineSpec, receiving, running


async def measure(load: dict[str, Any]) -> dict[str, float]:
    spec = MachineSpec(
        name="mover",
        accel="tcg",
        cpu=Cpu(model="qemu64"),
        memory=f"{load['memory']}KiB",
        firmware=load["firmware"],
        disks=[Disk(image, format="qcow2") for image in load["images"]],
    )
    total, downtime = [], []
    async with AsyncExitStack() as stack:
        vm: VM = await stack.enter_async_context(running(spec))
        await vm.console.expect(".")
        for _ in range(load["moves"]):
            destination = await stack.enter_async_context(receiving(vm))
            started = time.perf_counter()
            took = await vm.migrate(destination)
            total.append(time.perf_counter() - started)
            downtime.append(took.downtime)
            vm = destination.vm
            await vm.console.expect(".")
    return {"total": statistics.median(total), "downtime": statistics.median(downtime)}


def main() -> None:
    print(json.dumps(trio.run(measure, json.loads(sys.argv[1]))))


main()
