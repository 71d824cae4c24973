"""What a supervisor makes of the words of another one, and which of them it does not believe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from qmpkit import (
    Disk,
    MachineSpec,
    QmpkitError,
    Snapshot,
    SpecInvalid,
    StreamNic,
    Supervisor,
    Uefi,
    UserNic,
    Vfio,
)
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.wire import PROTOCOL, Wire, WireLost
from qmpkit.spec.health import FunctionCheck, to_health
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.moves import receiving
from qmpkit.supervisor.moves.offer import (
    Offer,
    offer_faults,
    offer_from_dict,
    offer_to_dict,
    options_from,
    ports_from,
    setting_from,
)
from qmpkit.supervisor.moves.offer_disks import disks_from, disks_to, with_bitmaps
from qmpkit.supervisor.moves.terms import ReceiveTerms, bounded, terms_faults
from qmpkit.supervisor.record import Leaving, Record, Remainder
from tests.unit.host.images_on_disk import qcow2, raw

UUID = "2b0e3b1c-6a0e-4a44-9d57-6b4c0a2f1111"
ID = "0" * 32
SPEC = MachineSpec(name="web", accel="tcg", uuid=UUID, nics=[UserNic(forwards=["2222:22"])])
RECORD = Record(
    name="web",
    declared="running",
    spec=SPEC,
    asked="abc",
    restart=Restart(policy="always", delay=3.0),
    sockets="/run/x",
    health=to_health("qmp"),
    after=("db",),
)


def words(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(offer_to_dict(RECORD, ID, None))), **changes}


def test_an_offer_is_read_as_it_was_meant() -> None:
    assert offer_from_dict(words()) == Offer(
        id=ID,
        spec=SPEC,
        asked="abc",
        declared="running",
        restart=RECORD.restart,
        health=RECORD.health,
        after=("db",),
    )


BAD_OFFERS: list[tuple[object, str]] = [
    (None, "no object"),
    ([], "no object"),
    ({}, "is missing"),
    (words(more=1), "more: unknown key"),
    (words(id="../../etc"), "no number of a move"),
    (words(id=7), "no number of a move"),
    (words(spec=[]), "none"),
    (words(spec={"name": "web", "schema": 99}), "schema"),
    (words(spec={"schema": 1, "name": "../web", "uuid": UUID}), "name"),
    (words(spec={"schema": 1, "name": "web"}), "uuid"),
    (words(spec={"schema": 1, "name": "web", "uuid": UUID, "memory": "-1"}), "memory"),
    (words(declared="stopped"), "declared"),
    (words(declared=["running"]), "declared"),
    (words(asked="x" * 300), "short text"),
    (words(restart={"policy": "never", "evil": 1}), "makes no sense"),
    (words(restart={"delay": -1.0}), "delay"),
    (words(health={"checks": "rm -rf"}), "makes no sense"),
    (words(after="web"), "list of names"),
    (words(requires=["x"] * 300), "list of names"),
    (words(generation="auto"), "generation"),
    (words(disks="mirrored"), "disks"),
]


@pytest.mark.parametrize(("plain", "why"), BAD_OFFERS)
def test_an_offer_that_makes_no_sense(plain: object, why: str) -> None:
    with pytest.raises(SpecInvalid, match=why):
        offer_from_dict(plain)


def test_what_cannot_travel() -> None:
    assert [*offer_faults(RECORD)] == []

    async def check(_: object) -> bool:
        return True

    functions = attrs.evolve(RECORD, health=to_health([FunctionCheck(check)]))
    assert [it.path for it in offer_faults(functions)] == ["health"]


def test_who_comes_from_afar_has_no_other_files_and_no_programs(tmp_path: Path) -> None:
    allowed = tmp_path / "disks"
    allowed.mkdir()
    (allowed / "link").symlink_to("/etc")
    terms = ReceiveTerms(address="10.0.0.1:0", tls=tmp_path, allow=[allowed])
    good = Disk(str(allowed / "a.img"), format="raw")
    assert [*terms_faults(attrs.evolve(SPEC, disks=[good], qemu="qemu-system-x86_64"), terms)] == []
    bad = [str(allowed / ".." / "b.img"), str(allowed / "link" / "passwd"), "/etc/shadow"]
    spec = attrs.evolve(
        SPEC,
        disks=[Disk(path, format="raw") for path in bad],
        firmware="/tmp/evil",
        qemu="/tmp/qemu",
        launcher=["sh"],
        env={"LD_PRELOAD": "x"},
        extra_args=["-monitor"],
        run_as="root",
        sandbox=False,
    )
    faults = [*terms_faults(spec, terms)]
    paths = ["", "", "", "", "env", "extra_args", "launcher", "qemu", "run_as", "sandbox"]
    assert sorted(it.path for it in faults) == paths


def test_an_image_from_afar_names_no_file_that_is_not_allowed(tmp_path: Path) -> None:
    """Whatever QEMU would open because a header says so, however far below."""
    allowed, secret = tmp_path / "disks", raw(tmp_path / "secret")
    allowed.mkdir()
    raw(allowed / "base")
    (allowed / "link").symlink_to(secret)
    terms = ReceiveTerms(address="10.0.0.1:0", tls=tmp_path, allow=[allowed])
    bad = {
        "backing": qcow2(allowed / "1", str(secret), backing_format="raw"),
        "relative": qcow2(allowed / "2", "../secret", backing_format="raw"),
        "link": qcow2(allowed / "3", "link", backing_format="raw"),
        "deeper": qcow2(allowed / "4", "1", backing_format="qcow2"),
        "data": qcow2(allowed / "5", data_file=str(secret)),
        "elsewhere": qcow2(allowed / "6", "nbd://10.0.0.9/x", backing_format="raw"),
        "options": qcow2(allowed / "7", 'json:{"driver": "file"}', backing_format="raw"),
        "guessed": qcow2(allowed / "8", "base"),
        "missing": qcow2(allowed / "9", "no-base", backing_format="raw"),
    }
    good = Disk(str(qcow2(allowed / "ok", "base", backing_format="raw")), format="qcow2")
    for name, image in bad.items():
        spec = attrs.evolve(SPEC, disks=[good, Disk(str(image), format="qcow2")])
        assert [it.path for it in terms_faults(spec, terms)] == ["disks[1].file"], name
        assert terms_faults(attrs.evolve(spec, disks=[Disk(str(image), format="raw")]), terms) == ()
    point = Snapshot(name="a", disks={"disk0": str(bad["data"])}, formats={"disk0": "qcow2"})
    back = attrs.evolve(SPEC, disks=[good], snapshots=[point])
    assert [it.path for it in terms_faults(back, terms)] == ["snapshots[0]"]
    stranger = attrs.evolve(point, disks={"disk0": str(secret)}, formats={"disk0": "raw"})
    assert len(terms_faults(attrs.evolve(back, snapshots=[stranger]), terms)) == 1
    stored = attrs.evolve(SPEC, firmware=Uefi(vars=str(bad["backing"])))
    assert [it.path for it in terms_faults(stored, terms)] == ["firmware.vars"]


def test_what_an_image_names_stays_bounded_when_it_starts_again(tmp_path: Path) -> None:
    terms = ReceiveTerms(address="10.0.0.1:0", tls=tmp_path, allow=[tmp_path])
    inner = str(tmp_path / "inner")
    for given, kept in (([], [str(tmp_path)]), (["/"], [str(tmp_path)]), (["/", inner], [inner])):
        spec = attrs.evolve(SPEC, image_folders=given)
        assert terms_faults(spec, terms) == ()
        assert [*bounded(spec, terms).image_folders] == kept


@pytest.mark.parametrize("name", ["reboot", "/usr/bin/env", "/usr/bin/../bin/env", "/x/qemu"])
def test_only_a_qemu_is_run_for_another_host(tmp_path: Path, name: str) -> None:
    terms = ReceiveTerms(address="10.0.0.1:0", tls=tmp_path, allow=[tmp_path])
    assert [it.path for it in terms_faults(attrs.evolve(SPEC, qemu=name), terms)] == ["qemu"]


def test_what_another_host_sends_has_no_devices_of_this_one(tmp_path: Path) -> None:
    """Its own check is not to be relied on."""
    terms = ReceiveTerms(address="10.0.0.1:0", tls=tmp_path, allow=[tmp_path])
    nics = [StreamNic(address="unix:/run/other.sock")]
    spec = attrs.evolve(SPEC, devices=[Vfio(host="0000:01:00.0")], nics=nics)
    assert sorted(it.path for it in terms_faults(spec, terms)) == ["devices[0]", "nics[0]"]


@pytest.mark.parametrize(
    "plain",
    [
        {"net0": [{"host": 1, "guest": 2, "address": "127.0.0.1\nquit"}]},
        {"net0": [{"host": -1, "guest": 2}]},
        {"net0": [{"host": 1}]},
        {"net0": "all"},
        {"eth9": []},
        {"net0": [{"host": 1, "guest": 2}] * 300},
        [],
    ],
)
def test_ports_that_make_no_sense(plain: object) -> None:
    spec = attrs.evolve(SPEC, nics=[UserNic(id="net0")])
    with pytest.raises(SpecInvalid):
        ports_from(plain, spec)
    assert ports_from({"net0": [{"host": 80, "guest": 8}]}, spec)["net0"][0].guest == 8


@pytest.mark.parametrize("plain", [None, {}, [1], [{"capability": "x"}], [{"state": True}] * 300])
def test_capabilities_that_make_no_sense(plain: object) -> None:
    with pytest.raises(SpecInvalid):
        setting_from(plain)


@pytest.mark.parametrize(
    "plain",
    [None, {"channels": "2"}, {"channels": 999}, {"compression": ";"}, {"channels": True}]
    + [{"recover_within": it} for it in ("9", -1, float("nan"), 1e9, True)],
)
def test_options_that_make_no_sense(plain: object) -> None:
    with pytest.raises(SpecInvalid):
        options_from(plain, None)
    assert options_from({"channels": 2, "compression": "zlib"}, None).way == "unix"


def test_a_move_is_on_record() -> None:
    moving = attrs.evolve(RECORD, leaving=Leaving(id=ID, place="tls://h:1", who="us", tls="/t"))
    follows = attrs.evolve(RECORD, arriving=ID, rest=Remainder(within=60.0, address="h:1"))
    arrived = attrs.evolve(RECORD, arrived=ID)
    for record in (moving, attrs.evolve(RECORD, arriving=ID), follows, arrived):
        assert Record.from_json(record.to_json()) == record
    plain = json.loads(RECORD.to_json())
    for key in ("leaving", "arriving", "arrived", "rest"):
        del plain[key]
    assert Record.from_json(json.dumps(plain)) == RECORD


HELLO = {"ask": "hello", "protocol": PROTOCOL}
_LINES: list[bytes] = [
    b"",
    b"\n",
    b"hello\n",
    b"[]\n",
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"x" * (3 << 20),
    b'{"ask": "run"}\n',
    b'{"ask": "hello", "protocol": 99}\n',
    b'{"terms": 7}\n',
    b'{"terms": {"address": 1}}\n',
    *(json.dumps(HELLO).encode() + b"\n" + rest for rest in (b"", b'{"ask": "run"}\n', b"{}\n")),
    *(
        b"\n".join(json.dumps(it).encode() for it in (HELLO, {"ask": "offer", "offer": offer}, ""))
        for offer, _ in BAD_OFFERS
    ),
]


async def test_a_hostile_conversation_leaves_nothing_behind(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "HELLO", 0.2)
    async with Supervisor("lab", keep=True) as lab:
        for line in _LINES:
            ours, theirs = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_says, ours, line)
                assert await lab.receive(theirs) is None
                nursery.cancel_scope.cancel()
        assert not lab.kept
        assert [it.name for it in lab.runtime_dir.iterdir()] == [".state"]
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:  # and is deaf to nobody afterwards
            nursery.start_soon(lab.receive, theirs)
            wire = Wire(ours)
            await wire.ask("hello", protocol=PROTOCOL)
            assert (await wire.ask("settle", id=ID))["outcome"] == "discarded"
    async with Supervisor("lab", keep=True) as lab:
        assert not lab.kept


async def _says(stream: trio.abc.Stream, line: bytes) -> None:
    try:
        await stream.send_all(line)
        if not line:
            await stream.aclose()
    except trio.BrokenResourceError:
        return


MOVE = DiskMove(
    disk=Disk("/new/d", format="qcow2", id="disk0"),
    source="top",
    file="/old/d",
    size=1 << 20,
    bytes=5,
    number=0,
    base=("/base", "qcow2"),
    bitmaps=("a",),
)


def test_disks_that_go_along_are_read_as_they_were_meant() -> None:
    spec = attrs.evolve(SPEC, disks=[Disk("/old/d", format="qcow2", id="disk0", make="1MiB")])
    record = attrs.evolve(RECORD, spec=spec)
    plain = json.loads(json.dumps(offer_to_dict(record, ID, None, [MOVE])))
    offer = offer_from_dict(plain)
    assert offer.spec.disks == (MOVE.disk,)
    (move,) = offer.moves
    assert move == attrs.evolve(MOVE, source="", file="", bitmaps=())
    assert with_bitmaps([move], {"disk0": ["a"]})[0].bitmaps == ("a",)
    assert with_bitmaps([move], None) == (move,)
    for senseless in ({"disk0": "a"}, {"disk0": [1]}, {"disk0": [""]}):
        with pytest.raises(SpecInvalid, match="makes no sense"):
            with_bitmaps([move], senseless)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"id": "disk1"}, "none that could be written to"),
        ({"id": ["disk0"]}, "none that could be written to"),
        ({"size": 0}, "disks.size"),
        ({"size": 1 << 64}, "disks.size"),
        ({"size": True}, "disks.size"),
        ({"bytes": -1}, "disks.bytes"),
        ({"base": ["base", "qcow2"]}, "disks.base"),
        ({"base": ["/base", "nbd"]}, "disks.base"),
        ({"base": "/base"}, "disks.base"),
        ({"base": ["/base"]}, "disks.base"),
        ({"more": 1}, "is none"),
    ],
)
def test_disks_that_make_no_sense(changes: dict[str, Any], why: str) -> None:
    spec = attrs.evolve(
        SPEC, disks=[MOVE.disk, Disk("/s", format="raw", id="disk2", readonly=True)]
    )
    (plain,) = json.loads(json.dumps(disks_to([MOVE])))
    for it in ([{**plain, **changes}], [plain, {**plain, **changes}]):
        with pytest.raises(SpecInvalid, match=why):
            disks_from(it, spec)
    for other in (None, [], "here", [plain, plain], [{**plain, "id": "disk2"}], [7]):
        with pytest.raises(SpecInvalid):
            disks_from(other, spec)
    assert disks_from("shared", spec) == ()


async def _refused(state: Path, spec: MachineSpec, *allow: str) -> str:
    """All that a supervisor says is in the way of such a machine of another host."""
    plain = offer_to_dict(attrs.evolve(RECORD, spec=spec, requires=("db",)), ID, None)
    terms = ReceiveTerms(address="127.0.0.1:0", tls=state, allow=[state, *allow])
    async with Supervisor("lab", keep=True) as lab:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: lab.receive(theirs, terms=terms))
            wire = Wire(ours)
            await wire.ask("hello", protocol=PROTOCOL)
            with pytest.raises(SpecInvalid) as told:
                await wire.ask("offer", offer=json.loads(json.dumps(plain)))
    return "\n".join(map(str, told.value.faults))


async def test_all_that_is_in_the_way_is_told_at_once(state: Path) -> None:
    spec = attrs.evolve(SPEC, disks=[Disk("/no/disk", format="raw")], qemu="/no/qemu")
    faults = await _refused(state, spec, "/no")
    for why in ("'/no/disk' does not exist", "requires: there is no machine 'db'", "/no/qemu"):
        assert why in faults
    assert "allowed here" not in faults


async def test_what_is_not_allowed_is_neither_looked_at_nor_run(
    state: Path, tmp_path: Path
) -> None:
    ran, qemu = tmp_path / "ran", tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\ntouch {ran}\n")
    qemu.chmod(0o755)
    spec = attrs.evolve(SPEC, disks=[Disk("/no/disk", format="raw")], qemu=qemu)
    faults = await _refused(state, spec)
    assert faults.count("allowed here") == 2 and "requires: there is no machine 'db'" in faults
    assert "does not exist" not in faults and not ran.exists()


async def test_a_conversation_has_bounds() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    wire = Wire(ours)
    with pytest.raises(WireLost, match=r"no answer to 'beat' within 0\.05 s"):
        await wire.ask("beat", patience=0.05)
    with pytest.raises(WireLost, match="broken off at 'beat'"):
        await wire.ask("beat")
    short = Wire(ours, limit=10)
    await theirs.send_all(b"x" * 100_000)
    with pytest.raises(WireLost, match="more than 10 bytes"):
        await short.receive()
    assert issubclass(WireLost, QmpkitError)
