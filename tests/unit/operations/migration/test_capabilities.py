"""Both ends of a migration are told the same, by what each of them has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmpkit import MigrationOptions
from qmpkit.operations.migration.capabilities import (
    Setting,
    agree,
    told_anew,
    wanted_capabilities,
)

PAUSE = "pause-before-switchover"
OLD = {"events", PAUSE, "return-path", "multifd", "late-block-activate", "zap"}
NEW = (OLD - {"zap"}) | {"mapped-ram", "auto-converge"}


def on(setting: Setting) -> set[object]:
    return {line["capability"] for line in setting if line["state"]}


@pytest.mark.parametrize(
    ("options", "throttled", "runs", "wanted"),
    [
        ({}, False, True, {"return-path", "late-block-activate"}),
        ({}, True, False, {"return-path", "auto-converge"}),
        ({"way": "unix", "channels": 2}, False, False, {"return-path", "multifd"}),
        (
            {"way": "file", "file": Path("ram")},
            False,
            False,
            {"mapped-ram", PAUSE},
        ),
    ],
)
def test_what_is_wanted(
    options: dict[str, Any], throttled: bool, runs: bool, wanted: set[str]
) -> None:
    found = wanted_capabilities(MigrationOptions(**options), throttled=throttled, runs=runs)
    assert found == wanted | {"events"}


def test_a_source_pauses_when_there_is_something_to_do_meanwhile() -> None:
    options, pause = MigrationOptions(), {"capability": PAUSE, "state": True}
    for pauses in (False, True):
        wanted = wanted_capabilities(options, throttled=False, runs=True, pauses=pauses)
        agreed = agree(OLD, OLD, wanted)
        assert (pause in agreed.source) is (pause in agreed.destination) is pauses


def test_postcopy_is_set_at_both_ends_or_at_neither() -> None:
    options, both = MigrationOptions(), OLD | {"postcopy-ram"}
    wanted = wanted_capabilities(options, throttled=False, runs=True, postcopies=True)
    assert "postcopy-ram" in wanted
    agreed = agree(both, both, wanted)
    assert "postcopy-ram" in on(agreed.source) & on(agreed.destination) and not agreed.faults
    without = wanted_capabilities(options, throttled=False, runs=True)
    off = {"capability": "postcopy-ram", "state": False}
    assert off in agree(both, both, without).source
    (fault,) = agree(both, OLD, wanted).faults
    assert (fault.path, fault.hint) == ("capabilities.postcopy-ram", "use a newer QEMU")


def test_each_that_an_end_knows_is_set_and_most_of_them_off() -> None:
    agreed = agree(OLD, NEW, {"events", "return-path"})
    assert {line["capability"] for line in agreed.source} == OLD
    assert {line["capability"] for line in agreed.destination} == NEW
    assert on(agreed.source) == on(agreed.destination) == {"events", "return-path"}
    assert agreed.on == {"events", "return-path"} and agreed.faults == ()


def test_what_one_end_lacks_is_off_at_the_other() -> None:
    agreed = agree(OLD, NEW, {"events", "mapped-ram"})
    assert on(agreed.destination) == {"events"}
    assert agreed.on == {"events"} and agreed.faults == ()


def test_what_is_each_ends_own_affair_may_be_on_at_one() -> None:
    agreed = agree(NEW - {"late-block-activate"}, NEW, {"late-block-activate"})
    assert on(agreed.source) == set() and on(agreed.destination) == {"late-block-activate"}


def test_what_cannot_be_done_without_is_a_fault() -> None:
    faults = agree(OLD, NEW - {"multifd"}, {"multifd", "auto-converge"}).faults
    assert [(fault.path, fault.message.split("'")[0]) for fault in faults] == [
        ("capabilities.auto-converge", "the source"),
        ("capabilities.multifd", "the destination"),
    ]


def test_what_is_so_already_is_not_said_again() -> None:
    setting = agree(NEW, NEW, {"events", "return-path"}).source
    now = {str(line["capability"]): bool(line["state"]) for line in setting}
    assert told_anew(setting, now) == []
    left_on = now | {"auto-converge": True, "events": False}
    changes = {str(it["capability"]): it["state"] for it in told_anew(setting, left_on)}
    assert changes == {"auto-converge": False, "events": True}
    assert told_anew(setting, {}) == setting, "of one that nobody knows"
