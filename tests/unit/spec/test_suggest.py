"""What is said of a word that nothing is called by."""

from __future__ import annotations

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.data import spec_from_dict
from qmpkit.spec.suggest import among, unknown_key


def test_the_nearest_key_is_named() -> None:
    assert str(unknown_key("disks[0].formt", "formt", ("file", "format"))) == (
        "disks[0].formt: unknown key (did you mean 'format'?)"
    )


def test_where_none_is_near_all_are_named() -> None:
    assert str(unknown_key("foo", "foo", ("iops", "bps"))) == "foo: unknown key (known: bps, iops)"


@pytest.mark.parametrize(("key", "meant"), [("extend", "extends"), ("shema", "schema")])
def test_the_keys_of_a_file_alone_are_known_too(key: str, meant: str) -> None:
    with pytest.raises(SpecInvalid, match=rf"{key}: unknown key \(did you mean '{meant}'\?\)"):
        spec_from_dict({"schema": 1, "name": "web", key: "q35"})


def test_what_is_there_is_told_to_who_names_what_is_not() -> None:
    assert among("dsk0", ["disk0", "cd0"]) == "did you mean 'disk0'?"
    assert among("nix", iter(["disk0", "cd0"])) == "there are: disk0, cd0"
    assert among("nix", {}) == "there are: none"
