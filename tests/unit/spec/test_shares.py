"""A share names a directory, or a socket; only who starts the virtiofsd says how it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint, NamedEndpoint
from qmpkit.spec.check import faults_of
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec, served
from qmpkit.spec.memory import Memory
from qmpkit.spec.parts import parts_of
from qmpkit.spec.peripherals import Share
from qmpkit.spec.profile import load_profile

SHARED = Memory("64MiB", share=True)


def spec(*shares: Share) -> MachineSpec:
    return MachineSpec(memory=SHARED, devices=shares, serials=0)


@pytest.mark.parametrize(
    ("share", "fault"),
    [
        (Share(tag="a", path="/srv"), ""),
        (Share(tag="a", socket="/run/a.sock"), ""),
        (Share(tag="a", path="/srv", read_only=True), ""),
        (Share(tag="a"), "devices[0]: a share has a directory of its own to serve"),
        (Share(tag="a", path="/srv", socket="/run/a"), "devices[0]: a share has a directory"),
        (Share(tag="a", socket="/run/a", read_only=True), "devices[0].read_only: is for whoever"),
    ],
)
def test_one_of_both(share: Share, fault: str) -> None:
    found = [str(it) for it in faults_of(spec(share))]
    assert [it.startswith(fault) for it in found] == [True] * bool(fault)


def test_its_socket_is_handed_over() -> None:
    machine = spec(Share(tag="a", path="/srv"), Share(tag="b", socket="/run/b"))
    assert [it.id for it in served(machine)] == ["fs0"]
    argv = render(machine, Facts(), {"qmp": FdEndpoint(3), "fs0": FdEndpoint(4)})
    assert "socket,id=qk-fs0,fd=4" in argv and "socket,id=qk-fs1,path=/run/b" in argv
    with pytest.raises(ValueError, match="no endpoint for fs0"):
        render(machine, Facts(), {"qmp": FdEndpoint(3)})
    handed = parts_of(machine, {"fs0": NamedEndpoint("qk-fs0")})
    (part,) = [it for it in handed if it.name == "chardev/qk-fs0"]
    address = {"type": "fd", "data": {"str": "qk-fs0"}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    assert part.arguments == {"id": "qk-fs0", "backend": backend}
    assert Share(tag="a", path="/srv").served and not machine.devices[1].served  # type: ignore[union-attr]


def test_its_path_counts_from_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "web.toml"
    table = '[[devices]]\nkind = "virtiofs"\ntag = "w"\npath = "work"\nread_only = true\n'
    profile.write_text(f"schema = 1\n[memory]\nshare = true\n{table}")
    (share,) = load_profile(profile).devices
    assert share == Share(id="fs0", tag="w", path=str(tmp_path / "work"), read_only=True)
