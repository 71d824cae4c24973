"""`qmpkit run` says so when a machine has nothing to boot; its console would stay empty."""

from __future__ import annotations

import pytest

from qmpkit import Disk, Kernel, MachineSpec, UserNic, load_profile
from qmpkit.cli.foreground import nothing_to_boot


@pytest.mark.parametrize(
    "spec",
    [
        MachineSpec(disks=[Disk("web.qcow2", format="qcow2")]),
        MachineSpec(kernel=Kernel("vmlinuz")),
        MachineSpec(firmware="code.bin"),
        MachineSpec(nics=[UserNic(boot=0)]),
        MachineSpec(extra_args=["-hda", "web.img"]),
        MachineSpec(launcher=["wrapper"]),
        load_profile("tiny"),
    ],
)
def test_something_to_boot(spec: MachineSpec) -> None:
    assert not nothing_to_boot(spec)


@pytest.mark.parametrize("profile", ["q35", "microvm"])
def test_a_bare_profile_has_nothing(profile: str) -> None:
    assert nothing_to_boot(load_profile(profile))
