"""What a guest may read and write each second: in files, for QEMU, and what is wrong with it."""

from __future__ import annotations

import pytest

from qmpkit import Disk, IoLimits, MachineSpec, spec_from_toml, spec_to_toml
from qmpkit.spec.check import faults_of
from qmpkit.spec.limits import limits_faults, throttle_of

PROFILE = """
schema = 1
[[disks]]
file = "/a.qcow2"
format = "qcow2"
[disks.limits]
bps = "50MiB"
iops_rd = 100
iops_rd_max = 400
iops_rd_max_length = 30
"""


def test_a_profile_has_them_and_qemu_gets_them() -> None:
    spec = spec_from_toml(PROFILE)
    limits = IoLimits(bps=50 << 20, iops_rd=100, iops_rd_max=400, iops_rd_max_length=30)
    assert spec.disks[0].limits == limits
    assert spec_from_toml(spec_to_toml(spec)) == spec
    assert spec_from_toml(spec_to_toml(spec, defaults=False)) == spec
    assert throttle_of(limits) == {
        "bps": 50 << 20,
        "bps_rd": 0,
        "bps_wr": 0,
        "iops": 0,
        "iops_rd": 100,
        "iops_wr": 0,
        "iops_rd_max": 400,
        "iops_rd_max_length": 30,
    }


def test_none_lifts_every_bound() -> None:
    assert set(throttle_of(None).values()) == {0} and len(throttle_of(None)) == 6


@pytest.mark.parametrize(
    ("limits", "where"),
    [
        (IoLimits(bps=1, bps_wr=1), "l.bps"),
        (IoLimits(iops=1, iops_rd=1, iops_max=2, iops_rd_max=2), "l.iops_max"),
        (IoLimits(iops_max=5), "l.iops_max"),
        (IoLimits(iops=5, iops_max=4), "l.iops_max"),
        (IoLimits(bps=5, bps_max_length=2), "l.bps_max_length"),
        (IoLimits(bps=5, bps_max=10**14, bps_max_length=11), "l.bps_max_length"),
        (IoLimits(iops=5, iops_max=9, iops_max_length=0), "l.iops_max_length"),
        (IoLimits(bps=10**16), "l.bps"),
        (IoLimits(iops=-1), "l.iops"),
        (IoLimits(bps=1, iops_size=4096), "l.iops_size"),
    ],
)
def test_what_qemu_would_refuse(limits: IoLimits, where: str) -> None:
    assert where in [fault.path for fault in limits_faults(limits, "l")]


def test_what_is_no_limits_is_said_so() -> None:
    assert [str(fault) for fault in limits_faults("1MiB", "limits")] == [
        "limits: cannot be '1MiB' (IoLimits(bps=\"100MiB\", iops=2000))"
    ]


def test_a_disk_tells_of_all_that_is_wrong() -> None:
    disk = Disk("/a", format="raw", limits=IoLimits(iops_size=1, bps=1, bps_rd=1))
    paths = [fault.path for fault in faults_of(MachineSpec(disks=[disk]))]
    assert paths == ["disks[0].limits.bps", "disks[0].limits.iops_size"]
