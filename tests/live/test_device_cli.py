"""Devices of a farm's machine at the shell, and what a killed supervisor leaves of a plug."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, Disk, MachineSpec, Supervisor
from qmpkit.machine.ledger import Change
from qmpkit.operations.hotplug.recovery import recover_parts
from qmpkit.spec.limits import IoLimits
from qmpkit.testing.leaks import leaks
from tests.live.dying import STEPS
from tests.live.kept import Places, end_all, lab
from tests.live.plugged import agreed
from tests.sizes import HOTPLUG_KILLS, LONG, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST), pytest.mark.usefixtures("places")]

FARM = """
schema = 1
[machines.store]
qemu = "{qemu}"
accel = "tcg"
memory = "32MiB"
root_ports = 3
"""


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "qmpkit.cli", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def listed(self) -> Any:
        return json.loads(self.run("device", "list", "store", "--json"))


def test_devices_at_the_shell(qemu: str, tmp_path: Path, places: Places) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "farm.toml").write_text(FARM.format(qemu=qemu))
    shell.run("up", "farm.toml")
    words = ("file=data.raw", "format=raw", "make=1MiB")
    assert "disk0 is plugged in at spare-port0" in shell.run(
        "device", "add", "store", "disk", *words
    )
    shell.run("device", "add", "store", "user", 'forwards=["0:22"]')
    shell.run("device", "link", "store", "nic0", "down")
    assert [it["id"] for it in shell.listed()["devices"]] == ["disk0", "nic0"]
    listed = shell.run("device", "list", "store")
    assert "(cable out)" in listed and "1 root port is left" in listed
    assert "no device 'nix'" in shell.run("device", "remove", "store", "nix", status=2)
    assert "one of disk, user" in shell.run("device", "add", "store", "nix", status=2)
    said = shell.run("device", "add", "store", "rng", "x=1", status=2)
    assert "x: unknown key (known: " in said and "max_bytes" in said and "make" not in said
    said = shell.run("device", "add", "store", "network", "nme=lan", status=2)
    assert "nme: unknown key" in said and "network)" in said
    said = shell.run("device", "remove", "store", "disk0", "--grace", "0", status=1)
    assert "has not let go of 'disk0'" in said
    shell.run("restart", "store", "--grace", "0")
    found = shell.listed()
    assert [it["id"] for it in found["devices"]] == ["disk0", "nic0"], "a restart has them too"
    assert found["devices"][0]["file"] == str(tmp_path / "data.raw")
    shell.run("stop", "store", "--grace", "0")
    assert "change its spec instead" in shell.run("device", "add", "store", "rng", status=2)
    shell.run("down", "--grace", "0")
    assert places.qemus() == []


def test_processors_and_memory_at_the_shell(qemu: str, tmp_path: Path, places: Places) -> None:
    shell = Shell(tmp_path)
    room = "cpu = {cpus = 1, maxcpus = 4}\nballoon = true\n"
    text = FARM.format(qemu=qemu).replace('"32MiB"', '{size = "32MiB", slots = 2, maxmem = "1GiB"}')
    (tmp_path / "farm.toml").write_text(text + room)
    shell.run("up", "farm.toml")
    assert "store: dimm0 of 256MiB is plugged in" in shell.run("memory", "add", "store", "256MiB")
    assert "cpu1, cpu2 plugged in" in shell.run("cpu", "add", "store", "2")
    assert "under TCG" in shell.run("cpu", "remove", "store", "cpu1", status=3)
    if LONG:
        said = shell.run("memory", "add", "store", "1GiB", status=2)
        assert "leaves room for 992MiB" in said
        assert "(of the start)" in shell.run("cpu", "list", "store")
        said = shell.run("memory", "remove", "store", "dimm0", "--grace", "0", status=1)
        assert "has not let go of 'dimm0'" in said
        said = shell.run("memory", "balloon", "store", "16MiB", "--grace", "0", status=1)
        assert "within 0 s" in said
        assert "no virtio-mem" in shell.run("memory", "resize", "store", "16MiB", status=2)
        shell.run("restart", "store", "--grace", "0")
    cpus = json.loads(shell.run("cpu", "list", "store", "--json"))["cpus"]
    assert [it["id"] for it in cpus if it["thread"]] == ["", "cpu1", "cpu2"]
    running = shell.run("cpu", "list", "store")
    listed = shell.run("memory", "list", "store")
    assert "dimm0" in listed and "1 slot is left" in listed and "leaves 288MiB" in listed
    shell.run("stop", "store", "--grace", "0")
    down = json.loads(shell.run("cpu", "list", "store", "--json"))
    places_of = [{**it, "thread": None} for it in cpus]
    assert down["cpus"] == places_of
    ids = [line.split("  ")[1].strip() for line in running.splitlines()]
    listed = shell.run("cpu", "list", "store")
    assert [line.split("  ")[1].strip() for line in listed.splitlines()] == ids
    assert "dimm0" in shell.run("memory", "list", "store")
    shell.run("down", "--grace", "0")
    assert places.qemus() == []


PROGRAM = (
    STEPS
    + """
kind, folder = words

step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.ledger:KeptLedger", "intend")
step("qmpkit.supervisor.ledger:KeptLedger", "settle")
step("qmpkit.operations.hotplug.disks", "place_disk")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        kept = lab.kept["bare"]
        qemu, vm, armed = kept.pid, kept.vm, True
        if kind == "add":
            file = f"{folder}/{last}{victims}.raw"
            disk = qmpkit.Disk(file, format="raw", make="1MiB", interface="virtio-scsi")
            await vm.disks.add(disk)
        else:
            await vm.disks.remove(vm.spec.disks[-1].id)
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.bound(60 + 8 * HOTPLUG_KILLS)
@pytest.mark.parametrize("kind", ["add", "remove"])
async def test_killed_between_any_two_steps(
    qemu: str, tmp_path: Path, kind: str, places: Places
) -> None:
    first = _disk(tmp_path / "first")
    spec = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", disks=[first])
    async with leaks():
        for last in range(1, HOTPLUG_KILLS + 1):
            victims = "supervisor" if last % 2 else "both"
            async with lab() as supervisor:
                vm = await _up(supervisor, spec)
                if kind == "remove" and len(vm.spec.disks) < 2:
                    await vm.disks.add(_disk(tmp_path / f"r{last}"))
            if not await _dies(kind, tmp_path, last, victims):
                break
            async with lab() as supervisor:
                vm = await _up(supervisor, spec)
                await agreed(vm)
                assert supervisor.kept["bare"].spec.disks == vm.spec.disks
        await end_all()


def _disk(file: Path) -> Disk:
    return Disk(file, format="raw", make="1MiB", interface="virtio-scsi")


async def _up(supervisor: Supervisor, spec: MachineSpec) -> VM:
    kept = await supervisor.ensure(spec, restart="never", paused=True)
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    assert kept.vm is not None
    return kept.vm


async def _dies(kind: str, folder: Path, last: int, victims: str) -> bool:
    argv = [sys.executable, "-c", PROGRAM, kind, str(folder), str(last), victims]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    if done.stdout == b"done\n":
        return False
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


async def test_a_disk_found_half_plugged_is_bound(qemu: str, tmp_path: Path) -> None:
    spec = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", root_ports=2)
    async with qmpkit.running(spec, paused=True) as vm:
        disk = await vm.disks.add(_disk(tmp_path / "a.raw"))
        bound = attrs.evolve(vm.spec, disks=[attrs.evolve(disk, limits=IoLimits(iops=500))])
        name = f"device/{disk.id}"
        change = Change(what="add it", spec=bound, begun=vm.spec, coming=(name,))
        assert await recover_parts(vm.machine, change) == bound
        (block,) = (it for it in await vm.execute("query-block") if it.get("inserted"))
        assert block["inserted"]["iops"] == 500
