"""A Linux guest that changes its memory without pause and keeps a ledger, in RAM and on a disk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

import qmpkit
from qmpkit import VM, Cpu, Disk, MachineSpec, images
from qmpkit.testing import guests

__all__ = ["acknowledged", "begin", "keeping_a_ledger", "ledger_spec", "records", "whole"]

# A record is its number and a checksum, on the disk for good before it is acknowledged.
# `still` must never change; `churn` is written all the time, with what is not zero.  Far behind
# the records is what takes a move a moment, and room.
_WRITER = """
cd /tmp
dd if=/dev/urandom of=still bs=1M count=2 2>/dev/null
md5sum still > still.md5
dd if=still of=/dev/vda bs=1M seek=32 conv=notrunc,fsync 2>/dev/null || exit
while [ ! -e stop ]; do dd if=still of=churn bs=1M conv=notrunc 2>/dev/null; usleep 50000; done &
n=0
while [ ! -e stop ]; do
  n=$((n+1))
  echo "$n $(echo $n | md5sum | cut -c1-32)" > record
  dd if=record of=/dev/vda bs=512 seek=$n count=1 conv=notrunc,sync,fsync 2>/dev/null || exit
  cat record >> ledger
  echo $n > acked.new; mv acked.new acked
done
touch done
"""
_CHECK = """
cd /tmp
md5sum -c still.md5 || exit 1
awk '$1 != NR || length($2) != 32 {print "record", NR, "is", $0; exit 1}' ledger || exit 1
dmesg | grep -E 'BUG|Oops|Call Trace|corrupt|I/O error' && exit 1
cat acked
"""


def ledger_spec(qemu: str) -> MachineSpec:
    """Of a type that both QEMUs have, with an odd size of RAM: see `migrating.ODD`."""
    return attrs.evolve(
        qmpkit.load_profile("tiny"),
        name="ledger",
        qemu=qemu,
        accel="tcg",
        machine="pc-q35-7.2",
        memory="262416KiB",
        cpu=Cpu(model="Nehalem"),
    )


@asynccontextmanager
async def keeping_a_ledger(qemu: str, disk: Path) -> AsyncIterator[VM]:
    """One that has begun, on a disk that was plugged in and is made when it is not there."""
    async with guests.booted(ledger_spec(qemu)) as vm:
        await vm.disks.add(Disk(str(disk), format="qcow2", make="64MiB"))
        await begin(vm)
        yield vm


async def begin(vm: VM) -> None:
    """Have it keep its ledger, on its only disk."""
    await vm.agent.wait_ready()
    await vm.agent.write_file("/tmp/writer", _WRITER)
    wait = "until [ -b /dev/vda ]; do usleep 10000; done; sh /tmp/writer > /dev/null 2>&1 &"
    await vm.agent.run(["sh", "-c", wait], check=True)
    ready = "until [ -s /tmp/acked ]; do usleep 10000; done"
    await vm.agent.run(["sh", "-c", ready], check=True)


async def acknowledged(vm: VM) -> int:
    """How many records are on its disk for good, at the least."""
    return int((await vm.agent.run(["cat", "/tmp/acked"], check=True)).text)


async def whole(vm: VM, had: int) -> int:
    """Its memory is what it was, it has written on, and nothing hurt it; how far it is."""
    done = await vm.agent.run(["sh", "-c", _CHECK])
    assert done.ok, done.text + done.error_text
    acked = int(done.text.splitlines()[-1])
    assert acked >= had
    ready = f"until [ $(cat /tmp/acked) -gt {acked} ]; do usleep 10000; done"
    await vm.agent.run(["sh", "-c", ready], check=True)
    return acked


async def records(disk: Path) -> int:
    """How many records a disk that nobody has open holds, without a gap; it is sound."""
    report = await images.check(disk, format="qcow2")
    assert report.ok and not report.leaks, report
    raw = disk.with_suffix(".raw")
    await images.convert(disk, raw, source_format="qcow2", format="raw")
    try:
        return await trio.to_thread.run_sync(_count, raw)
    finally:
        raw.unlink()


def _count(raw: Path) -> int:
    with raw.open("rb") as file:
        for number in itertools.count(1):
            file.seek(number * 512)
            checksum = hashlib.md5(f"{number}\n".encode()).hexdigest()
            if file.read(512).rstrip(b"\0") != f"{number} {checksum}\n".encode():
                assert not file.read(512 * 64).strip(b"\0"), f"a gap at {number}"
                return number - 1
    raise AssertionError("a disk ends")
