"""Sources that behave badly once a QEMU waits for them: it ends, and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from qmpkit import QmpkitError, Supervisor, UserNic
from qmpkit.host.resolve import resolve
from qmpkit.operations.migration.wire import PROTOCOL, Wire
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.moves import conversation
from qmpkit.supervisor.moves.offer import offer_to_dict
from qmpkit.supervisor.record import Record
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places
from tests.live.migrating import counting
from tests.live.receiving import other
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

UUID = "2b0e3b1c-6a0e-4a44-9d57-6b4c0a2f1111"
SET_UP = {"ask": "set_up", "capabilities": [], "options": {}}
BAD: list[list[dict[str, Any]]] = [
    [],
    [{"ask": "run", "runs": True}],
    [{"ask": "loaded"}],
    [SET_UP, SET_UP],
    [SET_UP, {"ask": "listen"}, {"ask": "listen"}],
    [SET_UP, {"ask": "listen"}, {"ask": "run", "runs": True}],
    [{"ask": "execute", "command": "quit"}],
    [{"ask": ["run"]}],
    [{"no": "ask"}],
]
REFUSED: list[dict[str, Any]] = [
    {"ask": "listen"},
    {"ask": "set_up", "capabilities": "all", "options": {}},
    {"ask": "set_up", "capabilities": [], "options": {"channels": -1}},
    {**SET_UP, "capabilities": [{"capability": "no-such", "state": True}]},
    {"ask": "ports", "ports": {"net0": [{"host": 1, "guest": 1, "address": "a\nquit"}]}},
]


async def _offered(there: Supervisor, qemu: str, folder: Path, nursery: trio.Nursery) -> Wire:
    spec = counting(qemu, folder, uuid=UUID, disks=[], nics=[UserNic(id="net0")])
    spec = (await resolve(spec)).spec
    record = Record(
        name="mover", declared="running", spec=spec, asked="", restart=Restart(), sockets=""
    )
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(there.receive, theirs)
    wire = Wire(ours)
    await wire.ask("hello", protocol=PROTOCOL)
    offer = json.loads(json.dumps(offer_to_dict(record, "0" * 32, None)))
    able = await wire.ask("offer", offer=offer)
    assert "events" in able["capabilities"] and "mover" in there.kept
    return wire


async def test_whoever_breaks_the_rules_is_hung_up_on(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "SILENCE", 0.5)  # of one that says nothing at all
    async with leaks(), other() as there:
        for words in BAD:
            async with trio.open_nursery() as nursery:
                wire = await _offered(there, qemu, tmp_path, nursery)
                assert len(places.qemus()) == 1
                for word in words:
                    await wire.send(word)
                with trio.fail_after(10):
                    while True:
                        try:
                            await wire.receive()
                        except QmpkitError:
                            break
            _nothing_left(there, places)


async def test_nonsense_is_refused_and_forgiven(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks(), other() as there:
        async with trio.open_nursery() as nursery:
            wire = await _offered(there, qemu, tmp_path, nursery)
            for word in REFUSED:
                more = {key: value for key, value in word.items() if key != "ask"}
                with pytest.raises(QmpkitError):
                    await wire.ask(word["ask"], **more)
                assert await wire.ask("beat") == {}
            assert (await wire.ask("discard"))["said"] == ""
        _nothing_left(there, places)


def _nothing_left(there: Supervisor, places: Places) -> None:
    assert not there.kept and places.qemus() == []
    assert [it.name for it in there.runtime_dir.iterdir()] == [".state"]
    assert [*(there.state_dir / "logs").glob("*")] == []
