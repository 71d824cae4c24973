"""Sockets handed to NICs, and what a start says when they do not fit."""

from __future__ import annotations

import socket
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import DgramNic, Forward, LaunchOptions, MachineSpec, SpecInvalid, StreamNic, UserNic

pytestmark = pytest.mark.live


@pytest.fixture
def bare(qemu: str) -> MachineSpec:
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("nic", "kind"), [(StreamNic(), socket.SOCK_STREAM), (DgramNic(), socket.SOCK_DGRAM)]
)
async def test_a_nic_takes_its_socket(bare: MachineSpec, nic: StreamNic, kind: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        options = LaunchOptions(links={"nic0": theirs})
        async with qmpkit.running(attrs.evolve(bare, nics=[nic]), options=options) as vm:
            filters = await vm.execute("query-rx-filter", {"name": "nic0"})
            assert filters[0]["name"] == "nic0"
        assert theirs.fileno() >= 0  # still ours to close


async def test_sockets_that_do_not_fit(bare: MachineSpec) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(SpecInvalid) as caught:
        spec = attrs.evolve(bare, nics=[UserNic(), StreamNic(id="cable")])
        async with qmpkit.running(spec, options=LaunchOptions(links={"nic0": ours})):
            pytest.fail("it started")
    assert str(caught.value) == (
        "machine 'bare': 2 faults:\n"
        "  - nics[1]: 'cable' has no address, and no socket came with the start"
        " (LaunchOptions(links={'cable': a socket}))\n"
        "  - links: 'nic0' is no NIC that takes a socket (these do: ['cable'])"
    )


async def test_paths_may_be_texts_and_relative(
    bare: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = LaunchOptions(tools_socket="tools")
    async with qmpkit.running(bare, logs="logs", options=options):
        assert (tmp_path / "tools").is_socket()
        monkeypatch.chdir("/")
    assert names(tmp_path) == ["logs"]


async def test_forwarded_ports_that_qemu_chose(bare: MachineSpec) -> None:
    nics = [
        UserNic(forwards=["0:22", Forward(0, 53, proto="udp")]),
        UserNic(net="192.168.77.0/24", forwards=[Forward(0, 80, address="0.0.0.0")]),
    ]
    async with qmpkit.running(attrs.evolve(bare, nics=nics), paused=True) as vm:
        found = await vm.forwards()
        leads = {(f.nic, f.proto, f.address, f.guest_address, f.guest_port) for f in found}
        assert leads == {
            ("nic0", "tcp", "127.0.0.1", "10.0.2.15", 22),
            ("nic0", "udp", "127.0.0.1", "10.0.2.15", 53),
            ("nic1", "tcp", "0.0.0.0", "192.168.77.15", 80),
        }
        for forwarded in found:
            if forwarded.proto == "tcp":
                await (await trio.open_tcp_stream("127.0.0.1", forwarded.port)).aclose()
