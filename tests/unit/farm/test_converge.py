"""Bringing a farm up: what is there becomes what is declared, and nobody else is touched."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit.errors import HostLacks, JournalFailed, LaunchFailed, SpecInvalid
from qmpkit.farm import down, plan_up, read_farm, scale, up
from qmpkit.farm.leave import disks_to_delete
from qmpkit.farm.outcome import Progress
from qmpkit.process.entries import entries_in
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_data import machine_to_dict
from qmpkit.spec.farm_plan import Unchanged
from qmpkit.spec.network import UserNic
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeGround, FakeKept, fake_ground
from qmpkit.testing.leaks import leaks
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


async def test_up_again_changes_nothing() -> None:
    wanted = farm(web={"count": 2}, db={})
    told: list[Progress] = []
    async with leaks(), fake_ground() as ground, lab(ground) as supervisor:
        outcome = await up(supervisor, wanted, tell=told.append)
        assert did(outcome) == dict.fromkeys(("web1", "web2", "db"), "added")
        assert outcome.went_well
        assert [(step.done, step.total) for step in told] == [(1, 3), (2, 3), (3, 3)]
        assert {kept.state for kept in supervisor.kept.values()} == {"running"}
        assert all(isinstance(s, Unchanged) for s in (await plan_up(supervisor, wanted)).steps)
        again = await up(supervisor, wanted)
        assert set(did(again).values()) == {"unchanged"}
        assert len(ground.started) == 3
        assert set(did(await down(supervisor)).values()) == {"removed"}


async def test_another_supervisor_goes_on() -> None:
    wanted = farm(web={"count": 2})
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await up(first, wanted)
        async with lab(ground) as second:
            assert set(did(await up(second, wanted)).values()) == {"unchanged"}
            assert await read_farm(second.state_dir) == wanted
            await down(second)
            assert await read_farm(second.state_dir) is None
            assert (second.kept, ground.alive) == ({}, [])


async def test_what_is_no_longer_declared_goes_first_and_only_that() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}, b={}))
        mine = await supervisor.ensure(spec("mine"))
        outcome = await up(supervisor, farm(b={}, c={}))
        assert did(outcome) == {"a": "removed", "b": "unchanged", "c": "added"}
        assert supervisor.kept["mine"] is mine
        assert sorted(supervisor.kept) == ["b", "c", "mine"]


async def test_a_name_that_a_program_has_is_refused_before_anything() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("mine"))
        with pytest.raises(SpecInvalid, match=r"machines\.mine: .*a program keeps") as caught:
            await up(supervisor, farm(a={}, mine={}))
        assert [fault.path for fault in caught.value.faults] == ["machines.mine"]
        assert sorted(supervisor.kept) == ["mine"]
        assert await read_farm(supervisor.state_dir) is None


async def test_what_this_host_lacks_is_told_of_all_before_anything() -> None:
    wanted = farm(
        a={"disks": [{"file": "/nowhere/a.qcow2", "format": "qcow2"}]},
        b={"disks": [{"file": "/nowhere/b.qcow2", "format": "qcow2"}]},
        c={},
    )
    async with fake_ground() as ground, lab(ground) as supervisor:
        with pytest.raises(ExceptionGroup) as caught:
            await up(supervisor, wanted)
        told = sorted(map(str, caught.value.exceptions))
        assert ["a.qcow2" in told[0], "b.qcow2" in told[1], len(told)] == [True, True, 2]
        assert (supervisor.kept, ground.started) == ({}, [])


async def test_the_directory_of_new_disks_is_made_unless_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "disks"
    new = {"file": f"{folder}/a.qcow2", "format": "qcow2", "make": "1MiB"}
    wrong = {"file": f"{tmp_path}/no/such/b.qcow2", "format": "qcow2", "make": "1MiB"}
    async with fake_ground() as ground, lab(ground) as supervisor:
        with pytest.raises(SpecInvalid, match=r"no/such' does not exist"):
            await up(supervisor, farm(a={"disks": [new]}, b={"disks": [wrong]}))
        assert not await trio.Path(folder).exists()
        await up(supervisor, farm(a={"disks": [new]}))
        assert folder.is_dir()


async def test_a_change_that_needs_a_restart_waits_for_the_word() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}, b={}))
        bigger = farm(a={"memory": "32MiB"}, b={})
        outcome = await up(supervisor, bigger)
        assert did(outcome) == {"a": "restart-needed", "b": "unchanged"}
        assert "spec.memory.size" in outcome.machines["a"].why
        assert len(ground.started) == 2
        outcome = await up(supervisor, bigger, restart=True)
        assert did(outcome) == {"a": "restarted", "b": "unchanged"}
        assert supervisor.kept["a"].spec.memory.size == 32 << 20
        assert (len(ground.started), len(ground.alive)) == (3, 2)


async def test_a_policy_changes_while_the_machine_runs(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            await up(supervisor, farm(a={}))
            changed = farm(a={"restart": {"policy": "always"}})
            assert did(await up(supervisor, changed)) == {"a": "changed"}
            assert supervisor.kept["a"].restart.policy == "always"
        async with lab(ground) as supervisor:
            assert supervisor.kept["a"].restart.policy == "always"
            assert set(did(await up(supervisor, changed)).values()) == {"unchanged"}
        assert len(ground.started) == 1


async def test_one_that_was_stopped_by_hand_starts_again_with_up() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}))
        await supervisor.declare("a", "stopped")
        assert did(await up(supervisor, farm(a={}))) == {"a": "started"}
        assert supervisor.kept["a"].state == "running"


async def test_another_order_is_no_circle() -> None:
    one, two = farm(web={"after": ["db"]}, db={}), farm(web={}, db={"requires": ["web"]})
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, one)
        for wanted in (two, one):
            await supervisor.stop_kept()
            assert (await up(supervisor, wanted)).went_well


async def test_a_machine_that_does_not_start_keeps_up_nobody() -> None:
    starts = count(1)

    def prepare(fake: FakeKept) -> None:
        if next(starts) == 1:
            raise LaunchFailed("a", ("qemu",), "1", "no")

    async with fake_ground() as ground, lab(ground) as supervisor:
        ground.prepare = prepare
        outcome = await up(supervisor, farm(a={"count": 3}))
        assert sorted(did(outcome).values()) == ["added", "added", "failed"]
        assert not outcome.went_well
        (failed,) = (r for r in outcome.machines.values() if r.did == "failed")
        assert "did not start" in failed.why


async def test_one_that_waits_for_a_failed_one_is_told_as_blocked() -> None:
    def prepare(fake: FakeKept) -> None:
        raise LaunchFailed("db", ("qemu",), "1", "no")

    wanted = farm(web={"requires": ["db"]}, db={}, other={"after": ["web"]})
    async with fake_ground() as ground, lab(ground) as supervisor:
        outcome = await up(supervisor, wanted)
        assert set(did(outcome).values()) == {"added"}
        await down(supervisor)
        ground.prepare = prepare
        outcome = await up(supervisor, farm(web={"requires": ["db"]}, db={}))
        assert did(outcome) == {"db": "failed", "web": "blocked"}
        assert "it requires db, which has failed" in outcome.machines["web"].why


class Ports:
    """A fake's user-mode NIC: its forwards by port of the host; port 666 cannot be had."""

    def __init__(self) -> None:
        self.there = {8080: 80}

    def __call__(self, arguments: dict[str, Any]) -> object:
        word, *rest = arguments["command-line"].split(" ")
        port = int(rest[-1].split("-")[0].split(":")[2]) if word != "info" else 0
        if word == "hostfwd_add" and port == 666:
            return "could not set up host forwarding rule"
        if word == "hostfwd_add":
            self.there[port] = int(rest[-1].rpartition(":")[2])
        elif word == "hostfwd_remove":
            del self.there[port]
        rows = [
            f"  TCP[HOST_FORWARD]  11  127.0.0.1 {host}  10.0.2.15 {guest}  0 0"
            for host, guest in self.there.items()
        ]
        return "\r\n".join(["Hub -1 (qk-nic0):", *rows]) if word == "info" else ""


@pytest.mark.parametrize("fails", ["ports", "journal", None])
async def test_ports_change_whole_or_not_at_all(
    fails: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nat(*ports: tuple[int, int]) -> Farm:
        forwards = [{"host": host, "guest": guest} for host, guest in ports]
        table = {"networks": [{"name": "out"}], "ports": forwards}
        return farm({"out": {"kind": "nat"}}, a=table)

    async def refuse(*_: object, **__: object) -> None:
        raise JournalFailed("/a.json", "full")

    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, nat((8080, 80)))
        ports = Ports()
        ground["a"].qemu.on("human-monitor-command", ports)
        if fails == "journal":
            monkeypatch.setattr(supervisor, "amend", refuse)
        other = (666 if fails == "ports" else 2222, 22)
        outcome = await up(supervisor, nat(other))
        assert did(outcome) == {"a": "failed" if fails else "changed"}
        assert ports.there == ({8080: 80} if fails else {2222: 22})
        (nic,) = supervisor.kept["a"].spec.nics
        assert isinstance(nic, UserNic)
        assert [it.host for it in nic.forwards] == ([8080] if fails else [2222])


async def test_scale_is_of_one_table_and_remembered() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(web={"count": 1}, db={}))
        await supervisor.declare("db", "stopped")
        assert did(await scale(supervisor, "web", 3)) == {
            "web1": "unchanged",
            "web2": "added",
            "web3": "added",
        }
        assert supervisor.kept["db"].declared == "stopped"
        assert did(await scale(supervisor, "web", 1)) == {
            "web3": "removed",
            "web2": "removed",
            "web1": "unchanged",
        }
        saved = await read_farm(supervisor.state_dir)
        assert saved is not None
        assert saved.tables["web"]["count"] == 1


async def test_scale_without_a_farm_or_table() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        with pytest.raises(SpecInvalid, match="nothing was declared yet"):
            await scale(supervisor, "web", 2)
        await up(supervisor, farm(web={"count": 1}))
        with pytest.raises(SpecInvalid, match=r"no table machines\.wob"):
            await scale(supervisor, "wob", 2)


async def test_a_seed_is_the_last_disk_and_goes_with_its_machine(state: Path) -> None:
    seeded = farm(a={"cloud_init": {"user": "me", "ssh_keys": []}})
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, seeded)
        iso = state / "seeds" / "a.iso"
        first = iso.read_bytes()
        assert b"cidata" in first
        assert (iso.stat().st_mode & 0o777, iso.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert supervisor.kept["a"].spec.disks[-1].file == str(iso)
        other = farm(a={"cloud_init": {"user": "you", "ssh_keys": []}})
        assert did(await up(supervisor, other)) == {"a": "restart-needed"}
        assert iso.read_bytes() == first
        assert did(await up(supervisor, other, restart=True)) == {"a": "restarted"}
        assert iso.read_bytes() != first
        await down(supervisor)
        assert not iso.exists()


async def test_disks_stay_unless_it_is_asked_for(tmp_path: Path) -> None:
    disk, other = tmp_path / "a.qcow2", tmp_path / "given.raw"
    other.write_bytes(bytes(1 << 20))
    wanted = farm(
        a={
            "disks": [
                {"file": str(disk), "format": "qcow2", "make": "1MiB"},
                {"file": str(other), "format": "raw"},
            ]
        }
    )
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, wanted)
        assert disk.exists()
        await down(supervisor)
        assert disk.exists()
        await up(supervisor, wanted)  # which uses it again
        assert await disks_to_delete(supervisor) == {"a": [str(disk)]}
        outcome = await down(supervisor, delete_disks=True)
        assert outcome.machines["a"].why == f"deleted {disk}"
        assert (disk.exists(), other.exists()) == (False, True)


async def test_a_disk_that_another_uses_is_not_among_what_goes(tmp_path: Path) -> None:
    base, top = str(tmp_path / "base.qcow2"), str(tmp_path / "top.qcow2")
    over = Disk(top, format="qcow2", make=Overlay(base, format="qcow2"))
    made = {"file": base, "format": "qcow2", "make": "1MiB"}
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={"disks": [made]}))
        assert await disks_to_delete(supervisor, ["a"]) == {"a": [base]}
        await supervisor.ensure(attrs.evolve(spec("own"), disks=[over]))
        assert await disks_to_delete(supervisor) == {"a": []}
        with pytest.raises(SpecInvalid, match="no machine of the farm"):
            await disks_to_delete(supervisor, ["own"])


async def test_down_of_some() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}, b={}))
        with pytest.raises(SpecInvalid, match="no machine of the farm"):
            await down(supervisor, names=["c"])
        assert did(await down(supervisor, names=["a"])) == {"a": "removed"}
        assert list(supervisor.kept) == ["b"]
        assert await read_farm(supervisor.state_dir) is not None


async def test_one_that_cannot_be_forgotten_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, farm(a={}, b={}))
        forget = supervisor.forget

        async def refuse(name: str, *, disks: bool) -> None:
            if name == "a":
                raise HostLacks("the disk is full", "")
            await forget(name, disks=disks)

        monkeypatch.setattr(supervisor, "forget", refuse)
        outcome = await down(supervisor)
        assert did(outcome) == {"a": "failed", "b": "removed"}
        assert "the disk is full" in outcome.machines["a"].why


TABLES = st.dictionaries(
    st.sampled_from("abc"),
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(1, 3),
            "memory": st.sampled_from(["16MiB", "32MiB"]),
            "restart": st.sampled_from([{"policy": "never"}, {"policy": "always"}]),
            "cloud_init": st.sampled_from([{"user": "me", "ssh_keys": []}]),
        },
    ),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tables=st.lists(TABLES, min_size=1, max_size=4))
async def test_from_any_farm_to_any_other(
    tables: list[dict[str, dict[str, object]]], state: Path
) -> None:
    async with fake_ground() as ground:
        for table in tables:
            wanted = farm(**table)
            async with lab(ground) as supervisor:
                before = {name: kept.pid for name, kept in supervisor.kept.items()}
                outcome = await up(supervisor, wanted, restart=True)
                assert outcome.went_well
                _is_as_declared(supervisor, ground, wanted)
                for name, result in outcome.machines.items():
                    if result.did in ("unchanged", "changed"):
                        assert supervisor.kept[name].pid == before[name]
        async with lab(ground) as supervisor:
            await down(supervisor)
        assert not ground.alive
        assert _left(state) == []


def _is_as_declared(supervisor: Supervisor, ground: FakeGround, wanted: Farm) -> None:
    declared = {machine.name: machine_to_dict(machine) for machine in wanted.machines}
    kept = supervisor.kept
    there = {n: machine_to_dict(k.record.farm) for n, k in kept.items() if k.record.farm}
    assert there == declared
    assert {k.state for k in kept.values()} <= {"running"}
    assert len(ground.alive) == len(declared)


def _left(state: Path) -> list[object]:
    return [*entries_in(state / "machines" / "journal"), *state.glob("seeds/*")]
