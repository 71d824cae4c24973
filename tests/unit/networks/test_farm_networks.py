"""Networks made, adopted, and removed; the switches are real, the machines are sockets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit import DgramNic, HostLacks, MachineSpec, StreamNic
from qmpkit.networks import helpers
from qmpkit.networks._switch_main import DATAGRAMS
from qmpkit.networks.farm_networks import FarmNetworks
from qmpkit.process.places import Places
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_networks import Nat, Segment
from qmpkit.spec.network import Nic

EVERYBODY, MAC = b"\xff" * 6, b"\x52\x54\x00\x00\x00\x01"
LAN = Joined(name="lan", network=Segment(), nic="nic0")
DMZ = Joined(name="dmz", network=Segment(socket="stream"), nic="nic1")
OUT = Joined(name="out", network=Nat(), nic="nic2")


@pytest.fixture
def places() -> Iterator[Places]:
    root = Path(tempfile.mkdtemp(prefix="qk-"))
    found = Places(root / "state", root / "run")
    found.state.mkdir()
    found.runtime.mkdir(mode=0o700)
    yield found
    for pid in pids(found).values():
        with suppress(ProcessLookupError):  # the last word on it may be its predecessor's
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(root)


def pids(places: Places) -> dict[str, int]:
    """The helpers on record."""
    try:
        plain: Mapping[str, Any] = json.loads((places.state / "helpers.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: it["pid"] for name, it in plain["helpers"].items()}


async def plug(networks: FarmNetworks, nic: Nic, join: Joined, machine: str = "a") -> Nic:
    async with networks.plugged(MachineSpec(nics=[nic]), [join], machine) as plugged:
        assert not plugged.links
        (nic,) = plugged.spec.nics
        return nic


async def port_of(
    networks: FarmNetworks, machine: str, stack: ExitStack
) -> tuple[socket.socket, str]:
    """A machine's socket as QEMU makes it, and where it sends to."""
    nic = await plug(networks, DgramNic(id="nic0"), LAN, machine)
    assert isinstance(nic, DgramNic) and nic.local and nic.remote
    sock = stack.enter_context(bound(Path(nic.local.removeprefix("unix:"))))
    return sock, nic.remote.removeprefix("unix:")


def bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(10)
    return sock


async def killed(pid: int) -> None:
    """Kill it and see it end: on a busy host it lives on for a while, and has its sockets."""
    end = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(end)
    finally:
        os.close(end)


async def hear(networks: FarmNetworks, stack: ExitStack) -> None:
    a, switch = await port_of(networks, "a", stack)
    b, _ = await port_of(networks, "b", stack)
    a.sendto(EVERYBODY + MAC + b"..hello", switch)
    assert await trio.to_thread.run_sync(b.recv, 99) == EVERYBODY + MAC + b"..hello"


async def test_made_once_adopted_and_removed_with_the_last(places: Places) -> None:
    networks = FarmNetworks()
    async with networks.open(places, {}):
        async with trio.open_nursery() as nursery:
            for machine in "abc":
                nursery.start_soon(networks.make, machine, [LAN, DMZ, OUT])
        first = pids(places)
        assert sorted(first) == ["the switch of network 'dmz'", "the switch of network 'lan'"]
    with ExitStack() as stack:
        later = FarmNetworks()
        async with later.open(places, {"a": [LAN], "b": [LAN], "c": [OUT]}):
            await hear(later, stack)
            del first["the switch of network 'dmz'"]  # nobody is on record there
            assert pids(places) == first
            await later.drop("a", [LAN])
            assert pids(places)
            await later.drop("b", [LAN])
            assert not pids(places)
    assert not list(places.runtime.iterdir())


async def test_one_that_is_killed_comes_again(places: Places) -> None:
    networks = FarmNetworks()
    with ExitStack() as stack:
        async with networks.open(places, {}):
            await networks.make("a", [LAN])
            await networks.make("b", [LAN])
            (before,) = pids(places).values()
            os.kill(before, signal.SIGKILL)
            while list(pids(places).values()) == [before]:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await networks.make("a", [LAN])  # it is on record before it is kept
            await hear(networks, stack)
        (now,) = pids(places).values()
        await killed(now)  # and when nobody is there to see it
        later = FarmNetworks()
        async with later.open(places, {"a": [LAN], "b": [LAN]}):
            await later.make("a", [LAN])
            await hear(later, stack)
            await later.drop("a", [LAN])
            await later.drop("b", [LAN])


async def test_a_directory_that_was_removed_is_made_again(places: Places) -> None:
    networks = FarmNetworks()
    with ExitStack() as stack:
        async with networks.open(places, {}):
            await networks.make("a", [LAN])
            await networks.make("b", [LAN])
            shutil.rmtree(places.runtime / ".net")
            await networks.make("a", [LAN])
            await hear(networks, stack)
            await networks.drop("a", [])
            await networks.drop("b", [])


async def test_a_port_or_a_switch_that_somebody_removes_is_told(places: Places) -> None:
    networks = FarmNetworks()
    with ExitStack() as stack:
        async with networks.open(places, {}):
            await networks.make("a", [LAN, OUT])
            await networks.make("b", [LAN])
            await hear(networks, stack)
            members = {"a": [LAN, OUT], "b": [LAN]}
            assert await networks.look(members) == {}
            port = places.runtime / ".net" / "lan" / "a.nic0"
            port.unlink()
            lost = Flaw(f"the port of nic0 of network 'lan': removed ({port})", mendable=False)
            assert await networks.look(members) == {"a": (lost,)}
            (places.runtime / ".net" / "lan" / DATAGRAMS).unlink()
            gone = Flaw("the socket of the switch of network 'lan': removed", mendable=True)
            assert await networks.look(members) == {"a": (gone, lost), "b": (gone,)}
            await networks.make("b", [LAN])  # as for one that runs: its switch alone
            assert await networks.look(members) == {"a": (lost,)}
            await networks.drop("a", [])
            await networks.drop("b", [])


async def test_the_port_by_which_one_joined_is_gone_once_it_listens(places: Places) -> None:
    """Until its restart it has datagrams on a network of streams, too."""
    networks = FarmNetworks()
    with ExitStack() as stack:
        async with networks.open(places, {}):
            await networks.make("a", [DMZ])
            now = await plug(networks, DgramNic(id="nic1"), DMZ)
            assert isinstance(now, DgramNic) and now.local
            stack.enter_context(bound(Path(now.local.removeprefix("unix:"))))
            assert await networks.look({"a": [DMZ]}) == {}
            await plug(networks, StreamNic(id="nic1"), DMZ)  # it starts, and listens nowhere yet
            assert (await networks.look({"a": [DMZ]})).keys() == {"a"}
            await networks.drop("a", [])


async def test_leaving_a_network_by_a_change(places: Places) -> None:
    networks = FarmNetworks()
    async with networks.open(places, {}):
        await networks.make("a", [LAN])
        await networks.make("a", [attrs.evolve(DMZ, nic="nic0")])
        assert pids(places).keys() == {"the switch of network 'dmz'"}
        await networks.make("a", [])
        assert not pids(places)


async def test_one_that_cannot_be_made_leaves_nothing(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str | None) -> None:
        if text is not None and "dmz" in text:
            raise OSError(28, "No space left on device")

    networks = FarmNetworks()
    async with networks.open(places, {}):
        with monkeypatch.context() as patch:
            patch.setattr(helpers, "write_durably", full)
            with pytest.raises(HostLacks) as caught:
                await networks.make("a", [LAN, DMZ])
            assert "the switch of network 'dmz' cannot be started: [Errno 28]" in str(caught.value)
        assert not list(places.runtime.iterdir())
        await networks.make("a", [DMZ])
        await networks.drop("a", [DMZ])
    assert not list(places.runtime.iterdir())


async def test_cancelled_at_any_moment_it_leaves_nothing(places: Places) -> None:
    networks = FarmNetworks()
    async with networks.open(places, {}):
        for step in range(8):
            with trio.move_on_after(step * 0.01) as scope:
                await networks.make("a", [LAN, DMZ])
            if scope.cancelled_caught:
                assert not list(places.runtime.iterdir())
            assert bool(pids(places)) is not scope.cancelled_caught
            await networks.drop("a", [LAN, DMZ])


async def test_a_record_that_is_unreadable_is_no_hindrance(places: Places) -> None:
    (places.state / "helpers.json").write_text('{"helpers": [')
    networks = FarmNetworks()
    async with networks.open(places, {"a": [LAN]}):
        await networks.make("a", [LAN])
        assert pids(places)
        await networks.drop("a", [])


async def test_names_as_long_as_can_be_still_give_sockets_that_bind(places: Places) -> None:
    networks = FarmNetworks()
    runtime = places.runtime / ("r" * (70 - len(str(places.runtime))))
    long = Joined(name="n" * 32, network=Segment(), nic="n" * 20)
    async with networks.open(Places(places.state, runtime), {}):
        nic = await plug(networks, DgramNic(id=long.nic), long, "m" * 64)
        stream = attrs.evolve(long, network=Segment(socket="stream"))
        listening = await plug(networks, StreamNic(id=long.nic), stream, "m" * 64)
    assert isinstance(nic, DgramNic) and isinstance(listening, StreamNic)
    for end in (nic.local, nic.remote, listening.address):
        assert end is not None and len(end.removeprefix("unix:")) <= 107
    assert len({nic.local, nic.remote, listening.address}) == 3


async def test_the_switch_connects_to_who_has_a_stream(places: Places) -> None:
    networks = FarmNetworks()
    async with networks.open(places, {}):
        await networks.make("a", [DMZ])
        nic = await plug(networks, StreamNic(id="nic1"), DMZ)
        assert isinstance(nic, StreamNic) and nic.address and nic.server
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(nic.address.removeprefix("unix:"))
            sock.listen(0)
            killed = 0
            for _ in range(2):  # and the next one does, when the first is killed
                with trio.fail_after(10):
                    await trio.lowlevel.wait_readable(sock)
                    # It is on record a moment after it has connected.
                    while [killed] == [*pids(places).values()]:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                stack.enter_context(sock.accept()[0])
                (killed,) = pids(places).values()
                os.kill(killed, signal.SIGKILL)
        await networks.drop("a", [DMZ])
    assert not list(places.runtime.iterdir())


async def test_what_an_unreadable_record_may_need_is_left(places: Places) -> None:
    first = FarmNetworks()
    async with first.open(places, {}):
        await first.make("a", [LAN])
    before = pids(places)
    second = FarmNetworks()
    async with second.open(places, {"b": [OUT]}, complete=False):
        await second.make("b", [DMZ])
    assert before.items() < pids(places).items()
    assert (places.runtime / ".net" / "lan").is_dir()
    third = FarmNetworks()
    async with third.open(places, {}):
        assert not pids(places)


async def test_one_that_cannot_be_watched_is_no_reason_for_a_second(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FarmNetworks()
    async with first.open(places, {}):
        await first.make("a", [LAN])
    before = pids(places)

    @asynccontextmanager
    async def full(*args: object, **options: object) -> AsyncIterator[Any]:
        raise OSError(24, "Too many open files")
        yield

    later = FarmNetworks()
    with monkeypatch.context() as patch:
        patch.setattr(helpers, "adopted", full)
        async with later.open(places, {"a": [LAN]}):
            with pytest.raises(HostLacks, match=r"cannot be watched: .*Too many open files"):
                await later.make("a", [LAN])
            patch.undo()
            with trio.fail_after(10):
                while True:
                    with suppress(HostLacks):
                        await later.make("a", [LAN])
                        break
                    await trio.sleep(0.05)
            assert pids(places) == before
            await later.drop("a", [LAN])


async def test_a_machine_that_moves_is_two_members(places: Places) -> None:
    networks = FarmNetworks()
    with ExitStack() as stack:
        async with networks.open(places, {}):
            await networks.make("a", [LAN])
            first, _ = await port_of(networks, "a", stack)
            await networks.make("a~", [LAN])
            second, switch = await port_of(networks, "a~", stack)
            assert first.getsockname() != second.getsockname()
            second.sendto(EVERYBODY + MAC + b"..hello", switch)
            assert await trio.to_thread.run_sync(first.recv, 99) == EVERYBODY + MAC + b"..hello"
            await networks.drop("a", ())
            left = trio.Path(second.getsockname())
            assert await left.exists() and not await trio.Path(first.getsockname()).exists()
            await networks.drop("nobody", ())
            assert pids(places)
        later = FarmNetworks()
        async with later.open(places, {"a": [LAN]}):
            assert not await left.exists(), "its supervisor died before it was on record"
            await hear(later, stack)
            await later.drop("a", [LAN])
    assert not list(places.runtime.iterdir())
