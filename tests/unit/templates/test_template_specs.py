"""What a template cannot have, and what its clones have of their own."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk
from qmpkit.spec.check import faults_of
from qmpkit.spec.encryption import Luks
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import Forward, TapNic, UserNic
from qmpkit.spec.peripherals import Rng, Vsock
from qmpkit.templates.specs import (
    clone_spec,
    private_spec,
    refuse_unfit,
    somebody,
    templating,
)

NIC = UserNic(mac="52:54:00:00:00:01", forwards=[Forward(2222, 22)])
SPEC = MachineSpec(
    name="web",
    agent=True,
    balloon=True,
    memory=Memory("1GiB", prealloc=True),
    nics=[NIC, UserNic()],
    disks=[Disk("/a.qcow2", format="qcow2"), Disk("/b.iso", format="raw", interface="cdrom")],
)


def test_a_spec_is_made_fit() -> None:
    spec = templating(SPEC, "/srv/web")
    assert (spec.memory.mem_path, spec.memory.share) == ("/srv/web.ram", True)
    assert (spec.balloon, spec.vmgenid) == (False, "auto")
    assert templating(SPEC, "/srv/web", ram="/dev/shm/r").memory.mem_path == "/dev/shm/r"
    assert templating(attrs.evolve(SPEC, machine="microvm"), "/srv/web").vmgenid is None
    refuse_unfit(spec, twins=False)


def test_everything_that_a_template_cannot_have_is_told_at_once() -> None:
    spec = attrs.evolve(
        SPEC,
        agent=False,
        nics=[TapNic(ifname="tap0")],
        devices=[Rng(), Vsock(cid=7)],
        disks=[Disk("/a.qcow2", format="qcow2", luks=Luks("/secret"))],
    )
    with pytest.raises(SpecInvalid) as caught:
        refuse_unfit(spec, twins=False)
    paths = [fault.path for fault in caught.value.faults]
    assert paths == ["memory", "balloon", "devices[1]", "disks[0].luks", "nics[0]", "agent"]
    assert "qmpkit.templating(spec, path)" in str(caught.value)
    assert all(fault.hint for fault in caught.value.faults)


def test_a_microvm_needs_a_kernel() -> None:
    spec = attrs.evolve(templating(SPEC, "/srv/web"), machine="microvm", vmgenid=None)
    with pytest.raises(SpecInvalid, match=r"kernel: a microvm boots by a kernel alone"):
        refuse_unfit(spec, twins=False)
    refuse_unfit(attrs.evolve(spec, kernel=Kernel("/boot/vmlinuz")), twins=False)


def test_a_clone_is_another_in_all_that_two_machines_may_not_share() -> None:
    spec = templating(SPEC, "/srv/web")
    overlays = {"disk0": Path("/tmp/top.qcow2")}
    private = private_spec(spec, overlays)
    one, two = (clone_spec(private, somebody(spec), overlays) for _ in range(2))
    assert one.name.startswith("web-") and one.name != two.name
    assert len({spec.uuid, one.uuid, two.uuid}) == 3
    macs = {nic.mac for clone in (one, two) for nic in clone.nics}
    assert len(macs) == 4 and NIC.mac not in macs
    assert all(mac is not None and mac.startswith("52:54:") for mac in macs)
    assert isinstance(one.nics[0], UserNic) and one.nics[0].forwards == (Forward(0, 22),)
    assert (one.memory.share, one.memory.prealloc) == (False, False)
    assert [disk.file for disk in one.disks] == ["/tmp/top.qcow2", "/b.iso"]
    assert faults_of(one) == ()


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("web-1", "web-1"),
        ("my web, 2", "my-web-2-b3fd2eec"),
        ("Zürich", "Zurich-"),
        ("…", "clone-"),
        ("日本", "clone-"),
        ("n" * 63, "n" * 63),
        ("n" * 64, "n" * 54 + "-"),
    ],
)
def test_a_host_name_has_what_host_names_may_have(name: str, hostname: str) -> None:
    found = somebody(SPEC, name).hostname
    assert found.startswith(hostname) and len(found) <= 63
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", found)
    if name == hostname:
        assert found == name
    else:
        assert re.fullmatch(r".*-[0-9a-f]{8}", found)


def test_no_two_names_are_one_host_name() -> None:
    names = [
        "日本",
        "中国",
        "web 1",
        "web_1",
        "web.1",
        "web-1",
        "web-1-",
        "wéb-1",
        "n" * 63,
        "n" * 64,
    ]
    assert len({somebody(SPEC, name).hostname for name in names}) == len(names)


def test_a_long_name_leaves_room_for_what_tells_clones_apart() -> None:
    spec = templating(attrs.evolve(SPEC, name="n" * 64), "/srv/web")
    assert faults_of(clone_spec(private_spec(spec, {}), somebody(spec), {})) == ()
    with pytest.raises(SpecInvalid, match="name: 'a/b' holds a '/'"):
        somebody(spec, "a/b")
