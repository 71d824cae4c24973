"""Where the guest of a machine is that was moving to another supervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import JournalFailed, MigrationOptions, SpecInvalid, move_place
from qmpkit.supervisor.moves.arrivals import Arrivals
from qmpkit.supervisor.moves.departures import Source, Whereabouts, where

HERE, THERE, UNKNOWN = Whereabouts.HERE, Whereabouts.THERE, Whereabouts.UNKNOWN


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        # The answers: nobody, it runs, it ran, its QEMU ended when told, it was given up, it was
        # lost there, nonsense.
        (Source.RUNNING, (HERE, HERE, HERE, HERE, HERE, HERE, HERE)),
        (Source.SENDING, (HERE, HERE, HERE, HERE, HERE, HERE, HERE)),
        (Source.SENT, (UNKNOWN, THERE, THERE, UNKNOWN, HERE, THERE, UNKNOWN)),
        (Source.SWITCHED, (UNKNOWN, THERE, THERE, UNKNOWN, HERE, THERE, UNKNOWN)),
        (Source.ENDED, (UNKNOWN, THERE, THERE, UNKNOWN, HERE, THERE, UNKNOWN)),
    ],
)
def test_nobody_guesses(source: Source, answers: tuple[Whereabouts, ...]) -> None:
    outcomes = (None, "runs", "ran", "ended", "discarded", "lost", "?")
    assert tuple(where(source, it) for it in outcomes) == answers


async def test_outcomes_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "arrivals"
    arrivals = Arrivals(path)
    await arrivals.load()
    for number in range(3):
        await arrivals.put(f"{number}", "ran")
    await arrivals.put("1", "ended")
    again = Arrivals(path)
    await again.load()
    assert [again.get(it) for it in "0123"] == ["ran", "ended", "ran", None]
    who = await arrivals.who()
    assert who == await again.who() != ""
    path.write_text("{")  # one that has lost its memory is another one
    forgetful = Arrivals(path)
    await forgetful.load()
    assert forgetful.get("0") is None and await forgetful.who() not in ("", who)
    with pytest.raises(JournalFailed):
        await Arrivals(tmp_path / "no" / "where").put("1", "ran")


@pytest.mark.parametrize(
    ("text", "tls", "why"),
    [
        ("a/b", False, "farm"),
        ("tls://", True, "is none"),
        ("tls://host", True, "is none"),
        ("tls://host:port", True, "is none"),
        ("tls://host:70000", True, "is none"),
        ("tls://me@host:1", True, "is none"),
        ("tcp://host:1", True, "is none"),
        ("tls://host:1", False, "in clear"),
        ("tls://host:1", True, r"ca-cert\.pem is not there"),
        ("lab", True, "needs none"),
    ],
)
def test_a_place_that_is_none(tmp_path: Path, text: str, tls: bool, why: str) -> None:
    with pytest.raises(SpecInvalid, match=why):
        move_place(text, tmp_path if tls else None)


def test_a_shared_secret_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "keys.psk").write_text("qemu:00\n")
    with pytest.raises(SpecInvalid, match="Python's ssl knows no shared secrets"):
        move_place("tls://host:1", tmp_path)


def test_the_way_to_a_place(tmp_path: Path) -> None:
    for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
        (tmp_path / f"{name}.pem").touch()
    far = move_place("tls://[::1]:4455", tmp_path)
    assert (str(far), far.host, far.port) == ("tls://[::1]:4455", "::1", 4455)
    options = far.options(MigrationOptions(downtime=0.1))
    assert (options.way, options.address, options.tls) == ("tcp", "[::1]:0", tmp_path)
    near = move_place("lab")
    assert (str(near), near.options(MigrationOptions()).way) == ("lab", "unix")
    with pytest.raises(SpecInvalid, match="does not lead to lab"):
        near.options(MigrationOptions(way="tcp"))
