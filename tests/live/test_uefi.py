"""UEFI on each QEMU: a disk that only it boots, stores that last and private ones, Secure Boot."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, HostLacks, ImageInUse, LaunchFailed, MachineSpec, SpecInvalid
from qmpkit.host.firmware import find_firmware
from qmpkit.host.holders import holders_of
from qmpkit.host.platform_key import has_platform_key
from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import PathEndpoint
from qmpkit.spec.firmware import Uefi
from qmpkit.testing import guests
from qmpkit.testing.guests.qemus import qemu_binaries
from qmpkit.testing.leaks import leaks
from tests.live.efi import EFI_BANNER, efi_disk
from tests.sizes import LONG, NEWEST, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """Read only, so that all machines may have it at once."""
    path = efi_disk(tmp_path_factory.mktemp("efi") / "disk.img")
    return Disk(path, format="raw", readonly=True)


@pytest.fixture
def spec(qemu: str) -> MachineSpec:
    lacking(secure_boot=False)
    profile = qmpkit.load_profile("q35-uefi")
    return attrs.evolve(profile, name="web", qemu=qemu, accel="tcg", memory="256MiB")


def lacking(*, secure_boot: bool, arch: str = "x86_64") -> None:
    """Skips where the host has no such firmware."""
    try:
        find_firmware(arch, secure_boot=secure_boot)
    except HostLacks as lacks:
        pytest.skip(str(lacks))


def template(*, secure_boot: bool = False, arch: str = "x86_64") -> bytes:
    return Path(find_firmware(arch, secure_boot=secure_boot).template).read_bytes()


def private_stores(pid: int) -> dict[int, bytes]:
    """What that QEMU's memory holds of UEFI variables, by the inode that no other file has."""
    fds = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if "uefi-vars" in str(fd.readlink())]
    return {fd.stat().st_ino: fd.read_bytes() for fd in fds}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


# --- a store with a name


async def test_a_named_store_is_made_once_and_lasts(
    spec: MachineSpec, disk: Disk, tmp_path: Path
) -> None:
    store = tmp_path / "web.vars"
    spec = attrs.evolve(spec, firmware=Uefi(vars=store), disks=[disk])
    async with leaks():
        async with qmpkit.running(spec) as vm:
            assert stat.S_IMODE(store.stat().st_mode) == 0o600
            await assert_refused(attrs.evolve(spec, name="other"), store, vm.pid)
            await vm.console.expect(EFI_BANNER)
        written = store.read_bytes()
        assert written != template(), "the firmware keeps its boot entries there"
        assert len(written) == len(template())
        before = identity(store)
        async with qmpkit.running(spec, paused=True) as vm:
            assert vm.pid in {holder.pid for holder in holders_of(store)}
            assert vm.spec.firmware == Uefi(*firmware_files(), store)
        assert (identity(store), store.read_bytes()) == (before, written)
    assert names(tmp_path) == ["web.vars"]


def firmware_files() -> tuple[str, str]:
    found = find_firmware("x86_64")
    return found.code, found.template


async def assert_refused(spec: MachineSpec, store: Path, holder: int) -> None:
    before = identity(store)
    with pytest.raises(ImageInUse) as caught:
        async with qmpkit.running(spec, start=nothing_starts):
            raise AssertionError("it must not start")
    told = str(caught.value)
    assert f"{str(store)!r}" in told
    assert f"machine 'web' (qemu-system-x86_64, pid {holder}) has it open" in told
    assert "Cure: give each machine a store of its own" in told
    # The machine that has it may write; the one that was refused has made no other.
    assert identity(store)[:2] == before[:2]


def nothing_starts(*_: object) -> NoReturn:
    raise AssertionError("nothing may be started")


async def test_a_failed_start_leaves_no_new_store(spec: MachineSpec, tmp_path: Path) -> None:
    """As of every file that is made for a start; one that was there stays."""
    store = tmp_path / "web.vars"
    broken = attrs.evolve(spec, firmware=Uefi(vars=store), extra_args=["-device", "no-such-device"])
    async with leaks():
        with pytest.raises(LaunchFailed, match="no-such-device"):
            async with qmpkit.running(broken):
                raise AssertionError("it must not start")
        assert names(tmp_path) == []
        store.write_bytes(template())
        before = identity(store)
        with pytest.raises(LaunchFailed, match="no-such-device"):
            async with qmpkit.running(broken):
                raise AssertionError("it must not start")
    assert identity(store) == before
    assert names(tmp_path) == ["web.vars"]


async def test_a_start_cut_off_leaves_no_store(spec: MachineSpec, tmp_path: Path) -> None:
    """Once the start is done it is the guest's, and a whole one stays."""
    store = tmp_path / "web.vars"
    spec = attrs.evolve(spec, firmware=Uefi(vars=store))
    begun = trio.current_time()
    async with qmpkit.running(spec, paused=True):
        whole = trio.current_time() - begun
    store.unlink()
    for number in range(12):
        reached = False
        async with leaks():
            with trio.move_on_after(whole * number / 8):
                async with qmpkit.running(spec, paused=True):
                    reached = True
                    await trio.sleep_forever()
        assert names(tmp_path) == (["web.vars"] if reached else [])
        if reached:
            assert store.read_bytes() == template()
            store.unlink()


# --- stores that end with the machine


async def test_two_at_once_have_private_stores(spec: MachineSpec, tmp_path: Path) -> None:
    before = template()
    async with (
        leaks(),
        qmpkit.running(spec, paused=True) as one,
        qmpkit.running(attrs.evolve(spec, name="two"), paused=True) as two,
    ):
        ((first, content),) = private_stores(one.pid).items()
        ((second, same),) = private_stores(two.pid).items()
        assert first != second
        assert content == same == before
        code, _ = firmware_files()
        assert {one.pid, two.pid} <= {holder.pid for holder in holders_of(code)}
    assert names(tmp_path) == []
    assert template() == before


async def test_the_command_to_paste(spec: MachineSpec, tmp_path: Path) -> None:
    """Its store is a file that QEMU makes, and removes itself."""
    resolution = await resolve(attrs.evolve(spec, serials=0, agent=False), check=False)
    argv = render(resolution.spec, resolution.facts, {"qmp": PathEndpoint(str(tmp_path / "qmp"))})
    commands = b'{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}'
    async with leaks():
        done = await trio.run_process(
            [*argv, "-qmp", "stdio"], stdin=commands, capture_stdout=True, capture_stderr=True
        )
    assert done.stderr == b""
    answers = [json.loads(line).get("return") for line in done.stdout.splitlines()]
    (chips,) = (answer for answer in answers if isinstance(answer, list))
    inserted = {chip["qdev"].rpartition(".")[2]: chip["inserted"] for chip in chips}
    code, empty = firmware_files()
    assert (inserted["flash0"]["file"], inserted["flash0"]["ro"]) == (code, True)
    assert (inserted["flash1"]["backing_file"], inserted["flash1"]["ro"]) == (empty, False)
    scratch = json.loads(inserted["flash1"]["file"].removeprefix("json:"))["file"]["filename"]
    assert not await trio.Path(scratch).exists()


# --- Secure Boot


async def test_secure_boot_refuses_what_is_not_signed(
    spec: MachineSpec, disk: Disk, tmp_path: Path
) -> None:
    """The very disk that boots without."""
    lacking(secure_boot=True)
    async with leaks():
        # Without a NIC, from which it would try to boot for a minute.
        spec = attrs.evolve(spec, firmware=Uefi(secure_boot=True), disks=[disk], nics=[])
        async with qmpkit.running(spec) as vm:
            await vm.console.expect(re.compile(r"failed to load Boot\d+ .*: Access Denied"))
            await vm.console.expect("No bootable option or device was found")
            assert EFI_BANNER not in vm.console.output
            (content,) = private_stores(vm.pid).values()
            assert content != template(secure_boot=True), "the firmware may write, through SMM"
    (tmp_path / "written").write_bytes(content)
    assert has_platform_key(tmp_path / "written")


async def test_secure_boot_with_a_store_from_before(spec: MachineSpec, tmp_path: Path) -> None:
    """It would be off, and nobody would notice."""
    lacking(secure_boot=True)
    store = tmp_path / "web.vars"
    store.write_bytes(template())
    spec = attrs.evolve(spec, firmware=Uefi(vars=store, secure_boot=True))
    with pytest.raises(SpecInvalid, match=r"firmware\.vars: .* has no keys enrolled"):
        async with qmpkit.running(spec, start=nothing_starts):
            raise AssertionError("it must not start")
    store.unlink()
    async with leaks(), qmpkit.running(spec, paused=True):
        assert store.read_bytes() == template(secure_boot=True)


# --- boards


async def test_microvm_is_refused_before_anything_starts(qemu: str, tmp_path: Path) -> None:
    spec = MachineSpec(name="tiny", machine="microvm", qemu=qemu, accel="tcg", firmware="uefi")
    async with leaks():
        with pytest.raises(SpecInvalid) as caught:
            async with qmpkit.running(spec, start=nothing_starts):
                raise AssertionError("it must not start")
    assert str(caught.value) == (
        "machine 'tiny': firmware: microvm has no flash for UEFI (machine = \"q35\")"
    )


@pytest.fixture(params=QEMU_VERSIONS)
def arm(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> str:
    """Path of a qemu-system-aarch64, one version after the other."""
    found = qemu_binaries("aarch64").get(request.param)
    if found is None:
        pytest.skip(f"needs QEMU {request.param} for aarch64: scripts/setup --tests")
    record_property("qemu", f"QEMU {request.param}")
    record_property("qemu", f"aarch64 on {request.param}")
    return str(found)


def arm_kernel(arm: str, uefi: Uefi) -> MachineSpec:
    """One that says in its own first lines by what it was started."""
    lacking(secure_boot=uefi.secure_boot, arch="aarch64")
    guests.build_tiny("aarch64")
    profile = qmpkit.load_profile("tiny-aarch64")
    assert profile.kernel is not None
    kernel = attrs.evolve(profile.kernel, append="console=ttyAMA0")
    return attrs.evolve(profile, qemu=arm, accel="tcg", kernel=kernel, firmware=uefi)


async def test_arm_starts_a_kernel_by_uefi(arm: str) -> None:
    async with leaks(), qmpkit.running(arm_kernel(arm, Uefi())) as vm:
        (content,) = private_stores(vm.pid).values()
        assert len(content) == 64 << 20
        await vm.console.expect("UEFI firmware")
        await vm.console.expect("EFI stub: Booting Linux Kernel")
        await vm.console.expect(re.compile(r"efi: EFI v2\S* by "))


@pytest.mark.skipif(not LONG, reason="its firmware takes 10 s: with --long")
@pytest.mark.parametrize("arm", QEMU_VERSIONS[-1:], indirect=True)
async def test_arms_secure_boot_refuses_an_unsigned_kernel(arm: str) -> None:
    """Of Debian's kernels only the signed ones would do, and this one is unpacked."""
    async with leaks(), qmpkit.running(arm_kernel(arm, Uefi(secure_boot=True))) as vm:
        await vm.console.expect("UEFI firmware")
        await vm.console.expect("No bootable option or device was found")
        assert "EFI stub" not in vm.console.output
