"""Which of two processes is the machine, when its supervisor has died while it moved."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit import MachineSpec, UserNic
from qmpkit.host.resolve import resolve
from qmpkit.machine import keep
from qmpkit.machine.keep import Home
from qmpkit.process.identity import Identity
from qmpkit.process.places import second_of
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.moves import heirs
from qmpkit.supervisor.moves.heirs import Arrival, Owner, owner_of_guest
from qmpkit.supervisor.record import Heir, Record
from qmpkit.testing.fake_kept import FakeGround, FakeKept, fake_ground
from tests.unit.supervisor.conftest import spec as made
from tests.unit.supervisor.kept import lab, on_disk, put_on_disk

S, H, N, B = Owner.SOURCE, Owner.HEIR, Owner.NOBODY, Owner.BOTH
EMPTY, LOADED, RUNS = Arrival("active", False), Arrival("completed", False), Arrival("x", True)


@pytest.mark.parametrize(
    ("source", "heir", "owner"),
    [
        # The source has ended, has not begun, is sending, stands still, has sent all, has failed.
        (None, None, S),
        (None, EMPTY, S),
        (None, LOADED, H),
        (None, RUNS, H),
        ("none", None, S),
        ("none", Arrival("none", False), S),
        ("active", None, S),
        ("active", EMPTY, S),
        ("pre-switchover", None, S),
        ("pre-switchover", EMPTY, S),
        ("device", EMPTY, S),
        ("device", LOADED, S),
        ("completed", EMPTY, S),
        ("completed", LOADED, H),
        ("completed", RUNS, H),
        ("completed", None, N),
        ("failed", LOADED, S),
        ("failed", None, S),
        ("cancelled", None, S),
        # Postcopy: the devices are on their way, the heir has them, runs, is cut off, has all.
        ("postcopy-active", EMPTY, B),
        ("postcopy-active", Arrival("postcopy-active", False), B),
        ("postcopy-active", Arrival("postcopy-active", True), B),
        ("postcopy-paused", Arrival("postcopy-active", True), B),
        ("postcopy-paused", Arrival("postcopy-paused", True), B),
        ("postcopy-recover", Arrival("postcopy-recover", True), B),
        ("completed", Arrival("postcopy-active", True), B),
        ("postcopy-active", Arrival("completed", True), H),
        ("postcopy-active", LOADED, H),
        (None, Arrival("postcopy-paused", True), N),
        (None, Arrival("postcopy-active", True), N),
        (None, Arrival("postcopy-active", False), N),
        ("failed", Arrival("postcopy-paused", True), N),
        ("failed", EMPTY, S),  # before it had let go of the images
        ("postcopy-active", None, N),
        ("postcopy-paused", None, N),
    ],
)
def test_one_of_them_has_the_guest(source: str | None, heir: Arrival | None, owner: Owner) -> None:
    assert owner_of_guest(source, heir) is owner


def test_an_heir_is_on_record() -> None:
    spec = MachineSpec(name="web", nics=[UserNic(forwards=["2222:22"])])
    heir = Heir(
        identity=Identity("boot", 17, 4),
        sockets="/run/qmpkit/lab/web~",
        argv=("qemu", "-S"),
        facts=Facts(accel="kvm", flash=Flash(code="/c", template="/t"), cpu_flags=("-x",)),
        spec=spec,
    )
    record = Record(
        name="web",
        declared="running",
        spec=spec,
        asked="",
        restart=Restart(policy="never"),
        sockets="/run/qmpkit/lab/web",
        heir=heir,
    )
    assert Record.from_json(record.to_json()) == record
    without = attrs.evolve(record, heir=None)
    assert Record.from_json(without.to_json()) == without
    old = without.to_json().replace(', "heir": null', "")
    assert "heir" not in old and Record.from_json(old) == without


async def an_heir(ground: FakeGround, state: Path, home: Home) -> FakeKept:
    """On record, and not kept: its supervisor has died in between."""
    record = Record.from_json(json.dumps(on_disk(state, "a")))
    resolution = await resolve(record.spec, check=False)
    beside = Home(home.sockets.with_name(second_of("a")), home.logs)
    async with ground.start(resolution, beside, {}, trio.lowlevel.checkpoint) as start:
        await start.keep()  # it has not heard yet that its supervisor is dead
    fake = ground["a"]
    heir = Heir(
        identity=fake.identity,
        sockets=str(beside.sockets),
        argv=(),
        facts=record.facts,
        spec=record.spec,
    )
    put_on_disk(state, "a", attrs.evolve(record, heir=heir).to_json())
    return fake


@pytest.mark.parametrize(
    ("dies", "question"),
    [("heir", "query-status"), ("heir", "query-migrate"), ("source", "query-migrate")],
)
async def test_one_that_ends_while_it_is_asked_has_ended(
    state: Path, dies: str, question: str
) -> None:
    """The spawner ends an heir that is not kept yet when it comes to that."""
    async with fake_ground() as ground:
        async with lab(ground) as first:
            home = (await first.ensure(made("a"), restart="never")).home
        source = ground["a"]
        heir = await an_heir(ground, state, home)
        dying = heir if dies == "heir" else source
        before = 1 if question == "query-status" else 0  # that is asked when it is connected to

        async def ends(_: object) -> object:
            nonlocal before
            before -= 1
            if before >= 0:
                return dying.qemu.run("query-status", {}, [])
            dying.end(signal.SIGKILL)
            return await trio.sleep_forever()

        source.qemu.on("query-migrate", {})
        heir.qemu.on("query-migrate", {})
        source.qemu.on("migrate_cancel", {})
        dying.qemu.on(question, ends)
        async with lab(ground) as second:
            kept = second.kept["a"]
            if dies == "heir":
                assert (kept.state, kept.pid) == ("running", source.pid)
            else:
                await kept.wait_rest()
                assert kept.state == "gone"
            assert kept.record.heir is None and heir.status is not None


async def silent(state: Path, ground: FakeGround, who: str) -> tuple[FakeKept, FakeKept]:
    """A source and its heir, one of which does not answer, beside another machine."""
    async with lab(ground) as first:
        home = (await first.ensure(made("a"), restart="never")).home
        await first.ensure(made("b"), restart="never")
    source = ground["a"]
    heir = await an_heir(ground, state, home)
    for it in (source, heir):
        it.qemu.on("query-migrate", {})
    (heir if who == "heir" else source).qemu.silent = True
    return source, heir


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(*args: Any, patience: float, **kwargs: Any) -> Any:
        return keep.attached(*args, patience=0.05, **kwargs)

    monkeypatch.setattr(heirs, "attached", attached)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("who", ["heir", "source"])
async def test_one_that_does_not_answer_is_waited_for_and_holds_up_nobody(
    state: Path, who: str
) -> None:
    async with fake_ground() as ground:
        source, heir = await silent(state, ground, who)
        async with lab(ground) as second:
            kept = second.kept["a"]
            assert (kept.state, second.kept["b"].state) == ("silent", "running")
            assert source.status is heir.status is None
            for it in (source, heir):
                it.qemu.silent = False
            await kept.wait_running()
            assert (kept.pid, kept.record.heir, heir.status is None) == (source.pid, None, False)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("who", ["heir", "source"])
async def test_where_one_does_not_answer_both_end_on_request(state: Path, who: str) -> None:
    async with fake_ground() as ground:
        await silent(state, ground, who)
        async with lab(ground) as second:
            with trio.fail_after(5):
                await second.declare("a", "stopped")
            kept = second.kept["a"]
            assert (kept.state, kept.record.heir, kept.pid) == ("gone", None, None)
            assert [it.name for it in ground.alive] == ["b"]
