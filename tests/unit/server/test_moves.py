"""The socket by which machines of other supervisors come to a daemon."""

from __future__ import annotations

import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import trio

from qmpkit import HostLacks, Supervisor, move_place
from qmpkit.operations.migration.place import MOVES, connected
from qmpkit.operations.migration.wire import PROTOCOL, Wire, WireLost
from qmpkit.server.moves import opened_moves, take_in


def test_it_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / MOVES
    path.parent.mkdir()
    path.touch()  # of a daemon that was killed
    with opened_moves(tmp_path) as listener:
        assert listener.family == socket.AF_UNIX
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    with pytest.raises(HostLacks, match="cannot listen"), opened_moves(tmp_path / "no"):
        pass


async def test_conversations_do_not_wait_for_one_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="qk-"))
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(runtime))
    place = move_place("lab")
    with pytest.raises(WireLost, match="no daemon that runs"):
        await connected(place)
    async with Supervisor("lab", keep=True) as lab:
        with opened_moves(lab.runtime_dir) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_in, lab, listener)
                async with await connected(place), await connected(place) as stream:
                    answer = await Wire(stream).ask("hello", protocol=PROTOCOL)
                    assert answer == {"protocol": PROTOCOL}
                nursery.cancel_scope.cancel()
        with pytest.raises(WireLost, match="nobody waits at lab"):
            await connected(place)
    shutil.rmtree(runtime)
