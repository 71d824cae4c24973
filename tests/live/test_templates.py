"""Templates and their clones on real QEMU: apart, whole, and never written to."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import Disk, MachineSpec, State, UserNic
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.operations.errors import GuestCommandFailed
from qmpkit.templates.errors import TemplateBroken, TemplateFailed, TemplateUnfit
from qmpkit.templates.manifest import MANIFEST, Manifest, manifest_from_json, manifest_to_json
from qmpkit.templates.saved import CLONES
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.sizes import CLONES_APART, NEWEST, OLDEST, QEMU_VERSIONS

pytestmark = pytest.mark.live


def profile(name: str, qemu: str) -> MachineSpec:
    return attrs.evolve(qmpkit.load_profile(name), qemu=qemu, accel="tcg")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    guests.build_tiny()
    guests.build_kvm_tiny()


def checksums(folder: Path) -> dict[str, str]:
    """Of all files of a template."""
    found = {}
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def _counting(vm: qmpkit.VM) -> None:
    await vm.console.expect("...")


@asynccontextmanager
async def tiny(qemu: str, place: Path) -> AsyncIterator[qmpkit.VM]:
    """A guest with a NIC and a disk, booted for a template at *place*."""
    disk = Disk(place.with_name("data.raw"), format="raw", make="64MiB", serial="data")
    spec = attrs.evolve(profile("tiny", qemu), nics=[UserNic()], disks=[disk], root_ports=6)
    async with qmpkit.running(qmpkit.templating(spec, place)) as vm:
        await vm.agent.wait_ready()
        settled = "until [ -e /run/settled ] && [ -b /dev/vda ]; do usleep 20000; done"
        await vm.agent.run(["sh", "-c", f"{settled}; {STUBS}"], check=True)
        yield vm


IDENTITY = """
hostname; cat /etc/machine-id /sys/class/net/eth0/address
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
head -n 1 /dev/vda; date +%s; cat /etc/hostname
cat /etc/ssh/ssh_host_stub_key /var/lib/cloud/data/instance-id
hostname >/dev/vda; sync; echo 3 >/proc/sys/vm/drop_caches
"""

# What a distribution has, and tiny has not.
STUBS = """
mkdir -p /etc/ssh /var/lib/cloud/data
echo i-template >/var/lib/cloud/data/instance-id
printf '#!/bin/sh\\necho "$@" >>/tmp/served\\n[ "$1" != nonesuch ]\\n' >/usr/bin/service
key=/etc/ssh/ssh_host_stub_key
printf "#!/bin/sh\\n[ -e $key ] || head -c 8 /dev/urandom | od -An -tx1 | tr -d ' ' >$key\\n" \\
    >/usr/bin/ssh-keygen
chmod 755 /usr/bin/service /usr/bin/ssh-keygen
ssh-keygen -A
"""


async def _failing_saves(vm: qmpkit.VM, place: Path) -> None:
    """Each leaves the guest running, on its own disk, and nothing else."""
    with pytest.raises(GuestCommandFailed, match="nonesuch"):
        await vm.to_template(place, services=["nonesuch"])
    data = place.with_name("data.raw")
    data.rename(place.with_name("elsewhere"))  # so its copy fails, when the state is saved
    with pytest.raises(ImageFailed, match=r"data\.raw"):
        await vm.to_template(place)
    place.with_name("elsewhere").rename(data)
    assert vm.state is State.RUNNING
    written = "echo kept >/dev/vda && sync && echo 3 >/proc/sys/vm/drop_caches && cat /dev/vda"
    done = await vm.agent.run(["sh", "-c", f"{written} | head -n 1"], check=True)
    assert done.text == "kept\n"
    assert names(place.parent) == {"data.raw", f"{place.name}.ram"}


@pytest.mark.bound(300)
@pytest.mark.qemus(*NEWEST)  # where a failed save has to take the images back; the CLI's is on 7.2
async def test_clones_are_somebody_each(qemu: str, tmp_path: Path) -> None:
    place = tmp_path / "web"
    async with leaks():
        async with tiny(qemu, place) as vm:
            own = (vm.spec.uuid, vm.name)
            await _failing_saves(vm, place)
            template = await vm.to_template(place, services=["web"], drop_caches=True)
            assert vm.state is State.GONE
        before = checksums(place)
        assert {"ram", "state", "kernel", "initrd", "disk0.qcow2", MANIFEST} == before.keys()
        begun = int(time.time())
        async with template.clones(CLONES_APART, ssh_host_keys=True) as vms:
            told: list[list[str]] = []
            for vm in vms:
                done = await vm.agent.run(["sh", "-c", IDENTITY], check=True)
                told.append(done.text.split())
            uuids = {(await vm.execute("query-uuid"))["UUID"] for vm in vms}
            genids = {(await vm.execute("query-vm-generation-id"))["guid"] for vm in vms}
            assert len(uuids) == len(genids) == CLONES_APART
            assert own[0] not in uuids
            hosts, ids, macs, noise, disks, clocks, files, keys, instances = zip(*told, strict=True)
            for kind in (hosts, ids, macs, noise, keys, instances):
                assert len(set(kind)) == CLONES_APART, kind
            assert list(hosts) == list(files) == [vm.name for vm in vms]
            assert list(macs) == [vm.spec.nics[0].mac for vm in vms]
            assert own[1] not in hosts
            assert set(disks) == {"kept"} and "i-template" not in instances
            served = (await vms[0].agent.read_file("/tmp/served")).decode().splitlines()
            assert served[-4:-2] == ["nonesuch start", "web stop"]
            assert {*served[-2:]} == {"ssh restart", "web start"}
            await vms[0].nics.add(UserNic(mac="52:54:00:00:00:99"))
            seen = "until grep -q 52:54:00:00:00:99 /sys/class/net/*/address; do usleep 20000; done"
            await vms[0].agent.run(["sh", "-c", seen], check=True)
            # The template is older than the first of them: each was set, and goes on.
            assert all(begun <= int(clock) <= time.time() for clock in clocks)
            for vm in vms:  # each wrote its name after it was asked
                read = ["sh", "-c", "head -n 1 /dev/vda"]
                assert (await vm.agent.run(read, check=True)).text.strip() == vm.name
        assert checksums(place) == before
        assert names(place / CLONES) == set()
    assert (tmp_path / "data.raw").read_bytes()[:4] == b"kept"  # the user's own is as it was
    assert names(tmp_path) == {"data.raw", "web"}


@pytest.mark.bound(120)
@pytest.mark.qemus(*OLDEST)
async def test_clones_of_a_microvm_are_somebody_each(qemu: str, tmp_path: Path) -> None:
    """Without PCI, SMBIOS and vmgenid: all by the agent, and nothing can be plugged."""
    disk = Disk(tmp_path / "data.raw", format="raw", make="1MiB")
    spec = attrs.evolve(profile("tiny-microvm", qemu), nics=[UserNic()], disks=[disk])

    async def prepare(vm: qmpkit.VM) -> None:
        await vm.agent.wait_ready()
        settled = "until [ -e /run/settled ] && [ -b /dev/vda ]; do usleep 20000; done"
        await vm.agent.run(["sh", "-c", f"{settled}; echo kept >/dev/vda"], check=True)

    async def told(vm: qmpkit.VM) -> tuple[str, ...]:
        done = await vm.agent.run(["sh", "-c", WHO], check=True)
        host, identity, mac, noise, kept = done.text.split()
        assert (host, mac, kept) == (vm.name, vm.spec.nics[0].mac, "kept")
        return host, identity, mac, noise

    template = await qmpkit.make_template(spec, tmp_path / "web", prepare)
    async with template.clones(2) as vms:
        seen = [await told(vm) for vm in vms]
        with pytest.raises(SpecInvalid, match="microvm has no PCI: nothing can be plugged there"):
            await vms[0].nics.add(UserNic())
    for loaded in (True, False):
        async with qmpkit.Pool(template, loaded=loaded) as pool, pool.take() as vm:
            seen.append(await told(vm))
    assert all(len({*each}) == 4 for each in zip(*seen, strict=True)), seen


WHO = """
hostname; cat /etc/machine-id /sys/class/net/eth0/address
head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; head -n 1 /dev/vda
"""


async def test_a_machine_with_private_ram_cannot_be_saved(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(profile("kvm-tiny", qemu)) as vm:
        with pytest.raises(SpecInvalid, match=r"RAM is not shared in a file .*templating\(spec"):
            await vm.to_template(tmp_path / "web", twins=True)
        assert vm.state is State.RUNNING
    assert names(tmp_path) == set()


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_a_twin_goes_on_where_its_template_stood(qemu: str, tmp_path: Path) -> None:
    spec = profile("kvm-tiny", qemu)
    template = await qmpkit.make_template(spec, tmp_path / "web", _counting, twins=True)
    async with template.clone(twin=True, paused=True) as one:
        count = await counted(one)
        async with template.clone(paused=True) as two:
            assert await counted(two) == count
            await two.resume()
            await _counting(two)
            assert await counted(two) > count
        assert await counted(one) == count
        assert one.state is State.PAUSED


async def test_a_ram_elsewhere_is_the_templates_too(qemu: str, tmp_path: Path) -> None:
    ram = Path("/dev/shm") / f"qmpkit-{os.getpid()}-ram"
    spec = profile("kvm-tiny", qemu)
    template = await qmpkit.make_template(spec, tmp_path / "web", _counting, ram=ram, twins=True)
    assert template.manifest.ram == str(ram)
    assert ram.stat().st_size == spec.memory.size
    async with template.clone(twin=True) as vm:
        await _counting(vm)
    await template.remove()
    assert not ram.exists() and names(tmp_path) == set()


async def test_a_template_that_is_not_made_leaves_nothing(qemu: str, tmp_path: Path) -> None:
    async def fails(vm: qmpkit.VM) -> None:
        await _counting(vm)
        raise RuntimeError("not as it should be")

    async with leaks():
        with pytest.raises(RuntimeError, match="not as it should be"):
            await qmpkit.make_template(
                profile("kvm-tiny", qemu), tmp_path / "web", fails, twins=True
            )
    assert names(tmp_path) == set()


@pytest.fixture
async def counting(qemu: str, tmp_path: Path) -> qmpkit.Template:
    place = tmp_path / "counting"
    return await qmpkit.make_template(profile("kvm-tiny", qemu), place, _counting, twins=True)


async def test_what_is_not_as_it_was_saved_is_not_cloned(counting: qmpkit.Template) -> None:
    assert await qmpkit.open_template(counting.path, verify=True) == counting
    ram = counting.path / "ram"
    saved_at = ram.stat().st_mtime_ns
    ram.chmod(0o600)
    with ram.open("r+b") as file:
        file.seek(guests.COUNTER_ADDRESS + (200 << 10))  # between two samples
        file.write(b"x")
    with pytest.raises(TemplateBroken, match="ram: its checksum is another one"):
        await qmpkit.open_template(counting.path)
    os.utime(ram, ns=(saved_at, saved_at))
    with pytest.raises(TemplateBroken, match="ram: its checksum is another one"):
        await qmpkit.open_template(counting.path, verify=True)
    assert await counting.verify() == ("ram: its checksum is another one: its content has changed",)
    with pytest.raises(SpecInvalid, match="there is no template"):
        await qmpkit.open_template(counting.path.parent)
    ram.rename(ram.with_name("away"))
    before = names(counting.path)
    with pytest.raises(TemplateBroken, match="ram: it is missing"):
        async with counting.clone(twin=True):
            pass
    assert names(counting.path) == before
    ram.with_name("away").rename(ram)
    (counting.path / "state").unlink()
    with pytest.raises(TemplateBroken, match="state: No such file"):
        async with counting.clone(twin=True):
            pass


async def test_a_template_of_another_qemu_or_machine_is_refused(
    counting: qmpkit.Template,
) -> None:
    file = counting.path / MANIFEST
    text = file.read_text()

    def rewrite(changed: Manifest) -> None:
        file.chmod(0o600)
        file.write_text(manifest_to_json(changed))

    saved = manifest_from_json(text, "here")
    rewrite(attrs.evolve(saved, build=attrs.evolve(saved.build, version=(99, 0, 0))))
    with pytest.raises(TemplateUnfit, match=r"QEMU 99\.0\.0 saved it"):
        await qmpkit.open_template(counting.path)
    rewrite(attrs.evolve(saved, build=attrs.evolve(saved.build, accel="kvm")))
    with pytest.raises(TemplateUnfit, match="its guest ran by kvm"):
        await qmpkit.open_template(counting.path)
    rewrite(attrs.evolve(saved, spec=attrs.evolve(saved.spec, rng=True, panic=False)))
    other = await qmpkit.open_template(counting.path)
    with pytest.raises(TemplateFailed, match=r"(?s)load the template's state.*load of migration"):
        async with other.clone(twin=True):
            pass
