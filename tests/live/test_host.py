"""The host as it is: its KVM against /sys, and each QEMU asked what it can do."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from qmpkit.errors import ImageInUse
from qmpkit.host import binary
from qmpkit.host.binary import capabilities_of, known_capabilities, schema_of
from qmpkit.host.capabilities import Stamp
from qmpkit.host.holders import image_locked
from qmpkit.host.kvm import cpu_flags, host_arch, kvm_facts, probe_kvm
from qmpkit.host.resolve import resolve
from qmpkit.host.variables import read_tsc_khz
from qmpkit.images import create, overlay
from qmpkit.process.child import child
from qmpkit.spec.argv import render
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.chardev import PathEndpoint
from qmpkit.spec.machine import MachineSpec
from tests.sizes import QEMU_VERSIONS

pytestmark = pytest.mark.live


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(binary, "_remembered", {})
    return tmp_path / "cache" / "binaries"


def test_kvm_agrees_with_the_kernel() -> None:
    facts = probe_kvm()
    modules = {entry.name for entry in Path("/sys/module").iterdir()}
    device = Path("/dev/kvm")
    if facts.usable:
        assert os.access(device, os.R_OK | os.W_OK, effective_ids=True)
        assert facts.device == "works"
        assert facts.cure == ""
    else:
        assert facts.cure
    if not device.exists():
        assert facts.kind == "none"
    elif host_arch() == "x86_64":
        hardware = cpu_flags() & {"vmx", "svm"} or modules & {"kvm_intel", "kvm_amd"}
        if "kvm_pvm" not in modules:
            assert facts.kind == ("hardware" if hardware else "paravirtual")
        elif not hardware:
            assert (facts.kind, facts.backend) == ("paravirtual", "kvm_pvm")
    assert kvm_facts() == facts


def test_tsc_sources_agree() -> None:
    if host_arch() != "x86_64":
        assert read_tsc_khz() is None
        return
    best = read_tsc_khz()
    assert best is not None
    assert 500_000 < best < 10_000_000


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_a_binary_is_asked_once(
    qemu: str, qemu_version: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = Stamp.of(Path(qemu))
    found = await capabilities_of(stamp)
    assert ".".join(str(part) for part in found.version).startswith(qemu_version + ".")
    assert found.arch == "x86_64"
    assert found.accelerators == ("kvm", "tcg")  # as Debian builds it
    q35, pc = found.machine("q35"), found.machine("pc")
    assert q35 is not None
    assert pc is not None
    assert q35.name == f"pc-q35-{qemu_version}"
    assert pc.name == f"pc-i440fx-{qemu_version}"
    assert pc.default
    assert found.machine("microvm") is not None
    assert {"qemu64", "max", "Nehalem"} <= set(found.cpu_models)
    assert {"query-status", "device_add", "blockdev-add"} <= found.commands
    assert found.run_with_user == (found.version >= (9, 1, 0))
    assert found.sandbox

    async def must_not_ask(path: str) -> None:
        raise AssertionError("it is remembered")

    monkeypatch.setattr(binary, "_ask", must_not_ask)
    assert await capabilities_of(stamp) is found
    binary._remembered.clear()
    assert known_capabilities(stamp) == found
    schema = await schema_of(stamp)
    assert schema.commands == found.commands
    assert schema.accepts("blockdev-add", "cache.direct")
    assert schema.has_event("DEVICE_DELETED", "device")
    assert _entries(empty_cache) == {stamp.entry, stamp.schema_entry}


def _entries(folder: Path) -> set[Path]:
    return set(folder.iterdir())


async def test_a_lost_schema_is_asked_for_again(qemu: str, empty_cache: Path) -> None:
    stamp = Stamp.of(Path(qemu))
    first = await schema_of(stamp)
    stamp.schema_entry.write_bytes(stamp.schema_entry.read_bytes()[:-100])
    assert (await schema_of(stamp)).commands == first.commands
    stamp.entry.unlink()
    assert (await schema_of(stamp)).commands == first.commands
    assert not stamp.entry.exists(), "the schema alone was enough"


async def test_two_binaries_are_asked_at_the_same_time(
    qemu: str, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is slow to answer holds up nobody who asks another."""
    other = tmp_path / "qemu"
    other.symlink_to(qemu)
    really_ask = binary._ask

    async def slow_for_one(path: str) -> object:
        if path == qemu:
            await trio.sleep_forever()
        return await really_ask(path)

    monkeypatch.setattr(binary, "_ask", slow_for_one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capabilities_of, Stamp.of(Path(qemu)))
        await trio.testing.wait_all_tasks_blocked()
        assert (await capabilities_of(Stamp.of(other))).arch == "x86_64"
        nursery.cancel_scope.cancel()


async def test_many_first_starts_ask_once(
    qemu: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    really_ask = binary._ask

    async def counted(path: str) -> object:
        nonlocal asked
        asked += 1
        return await really_ask(path)

    monkeypatch.setattr(binary, "_ask", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(capabilities_of, Stamp.of(Path(qemu)))
    assert asked == 1


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.015, 0.03, 0.06])
async def test_cancelled_while_asking(qemu: str, empty_cache: Path, delay: float) -> None:
    stamp = Stamp.of(Path(qemu))
    with trio.move_on_after(delay):
        await capabilities_of(stamp)
    assert await trio.to_thread.run_sync(_running, qemu) == []
    assert (await capabilities_of(stamp)).arch == "x86_64"


def _running(program: str) -> list[str]:
    """The processes of this program whose parent is ours: the spawner's are its children."""
    real = os.path.realpath(program)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.path.realpath(process / "exe") == real and _is_descendant(process):
                found.append(process.name)
    return found


def _is_descendant(process: Path) -> bool:
    while process.name != "0":
        if process.name == str(os.getpid()):
            return True
        process = Path("/proc") / (process / "stat").read_text().rpartition(")")[2].split()[1]
    return False


async def test_resolve_for_real(qemu: str, empty_cache: Path) -> None:
    spec = MachineSpec(qemu=qemu, accel="tcg")
    first = await resolve(spec)
    again = await resolve(spec)
    assert first == again
    assert first.spec.machine.startswith("pc-q35-")
    assert first.facts.binary == qemu
    nowhere = PathEndpoint("/nowhere")
    argv = render(first.spec, first.facts, {"qmp": nowhere, "serial0": nowhere})
    assert argv[0] == qemu


async def test_an_image_in_use_is_refused_with_its_holder(qemu: str, tmp_path: Path) -> None:
    """qemu-img itself would make an overlay of an image that is being written."""
    image = await create(tmp_path / "disk", "1MiB", "qcow2")
    spec = MachineSpec(qemu=qemu, accel="tcg", disks=(Disk(image, format="qcow2"),))
    blockdev = f"driver=qcow2,node-name=n,file.driver=file,file.filename={image}"
    argv = [qemu, "-M", "none", "-S", "-nodefaults", "-display", "none", "-blockdev", blockdev]
    async with child(argv, name="holder") as holder:
        await trio.to_thread.run_sync(_wait_until_locked, image)
        with pytest.raises(ImageInUse) as caught:
            await resolve(spec)
        assert f"(pid {holder.pid}) has it open" in str(caught.value)
        with pytest.raises(ImageInUse, match="writes to it"):
            await overlay(tmp_path / "top", image, "qcow2")
        made = Disk(tmp_path / "top", format="qcow2", make=Overlay(image, format="qcow2"))
        with pytest.raises(ImageInUse):
            await resolve(attrs.evolve(spec, disks=(made,)))
    await resolve(spec)


def _wait_until_locked(image: Path) -> None:
    # There is no event for a lock that somebody else takes.
    deadline = time.monotonic() + 10
    while not image_locked(image, for_writing=True):
        assert time.monotonic() < deadline, "QEMU does not lock its image"
        time.sleep(0.005)
