"""`events --since`: a number, a time, an age; all else is told what it could be."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from qmpkit.cli.exits import Refusal
from qmpkit.cli.since import since_query


def test_a_number_or_nothing() -> None:
    assert since_query(None) == {}
    assert since_query("4711") == {"since": 4711}
    assert since_query("-1") == {"since": -1}


@pytest.mark.parametrize(
    ("word", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400), ("2w", 1209600)]
)
def test_an_age(word: str, seconds: float) -> None:
    before = time.time()
    moment = float(since_query(word)["since_time"])
    assert before - seconds <= moment <= time.time() - seconds


@pytest.mark.parametrize(
    ("word", "moment"),
    [
        ("2026-03-01T08:30:00Z", 1772353800.0),
        ("2026-03-01 09:30+01:00", 1772353800.0),
        ("2026-03-01T08:30", datetime(2026, 3, 1, 8, 30).timestamp()),
        ("2026-03-01", datetime(2026, 3, 1).timestamp()),
    ],
)
def test_a_time(word: str, moment: float) -> None:
    assert float(since_query(word)["since_time"]) == moment


@pytest.mark.parametrize(
    "word", ["", "yesterday", "10x", "m", "2026-13-01", "25:00", "0001-01-01", "9" * 19, "m1"]
)
def test_what_is_neither(word: str) -> None:
    with pytest.raises(Refusal, match=r"--since .*: it is a number"):
        since_query(word)
