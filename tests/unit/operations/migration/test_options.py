"""Options of a migration: every fault at once, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmpkit import MigrationOptions, SpecInvalid
from qmpkit.operations.migration.parameters import UNBOUNDED, parameter_faults, parameters_of


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"way": "unix", "channels": 4, "compression": "zstd", "max_bandwidth": "100MiB"},
        {"way": "tcp", "address": "127.0.0.1:0"},
        {"way": "tcp", "address": "192.0.2.1:0", "tls": "certificates"},
        {"way": "tcp", "address": "[::1]:4444", "channels": 255},
        {"way": "file", "file": "ram"},
        {"downtime": 0.001, "max_downtime": 2000.0},
    ],
)
def test_these_are_options(options: dict[str, Any]) -> None:
    MigrationOptions(**options)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"way": "pigeon"}, ["way"]),
        ({"way": "tcp", "address": "127.0.0.1"}, ["address"]),
        ({"way": "file"}, ["file"]),
        ({"file": "ram"}, ["file"]),
        ({"way": "tcp", "address": "192.0.2.1:0"}, ["tls"]),
        ({"way": "unix", "tls": "certificates"}, ["tls"]),
        ({"max_bandwidth": 1023}, ["max_bandwidth"]),
        ({"max_bandwidth": 1 << 64}, ["max_bandwidth"]),
        ({"downtime": 0}, ["downtime"]),
        ({"downtime": float("nan")}, ["downtime"]),
        ({"downtime": 3.0, "max_downtime": 2.0}, ["max_downtime"]),
        ({"max_downtime": 2001.0}, ["max_downtime"]),
        ({"channels": 2}, ["channels"]),
        ({"way": "file", "file": "ram", "channels": 2}, ["channels"]),
        ({"way": "unix", "channels": 256}, ["channels"]),
        ({"way": "unix", "channels": -1}, ["channels"]),
        ({"way": "unix", "compression": "zstd"}, ["compression"]),
        ({"way": "unix", "channels": 2, "compression": "rar"}, ["compression"]),
        (
            {"way": "tcp", "address": "here", "channels": 256, "downtime": 0, "max_bandwidth": 1},
            ["address", "max_bandwidth", "downtime", "channels"],
        ),
    ],
)
def test_these_are_none(options: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(SpecInvalid) as told:
        MigrationOptions(**options)
    assert [fault.path for fault in told.value.faults] == paths


def test_a_size_that_is_none_is_a_fault_too() -> None:
    with pytest.raises(SpecInvalid, match="max_bandwidth"):
        MigrationOptions(max_bandwidth="fast")


def test_a_file_is_where_this_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MigrationOptions(way="file", file="ram").file == tmp_path / "ram"


ALL = ("max-bandwidth", "downtime-limit", "multifd-channels", "multifd-compression", "tls-creds")


def test_every_parameter_is_set_that_is_known() -> None:
    assert parameters_of(MigrationOptions(), ALL) == {
        "max-bandwidth": UNBOUNDED,
        "downtime-limit": 300,
        "multifd-channels": 1,
        "multifd-compression": "none",
        "tls-creds": "",
    }
    options = MigrationOptions(
        way="unix", max_bandwidth=1 << 20, downtime=0.0014, channels=3, compression="zlib"
    )
    assert parameters_of(options, ALL[:4]) == {
        "max-bandwidth": 1 << 20,
        "downtime-limit": 1,
        "multifd-channels": 3,
        "multifd-compression": "zlib",
    }


def test_what_a_qemu_has_no_parameter_for_is_told() -> None:
    options = MigrationOptions(way="unix", channels=3, compression="zlib")
    faults = parameter_faults(options, ALL[:3], "source")
    assert [(fault.path, fault.message) for fault in faults] == [
        ("parameters.multifd-compression", "the source's QEMU does not have it")
    ]
    assert parameter_faults(options, ALL, "source") == []
    assert parameter_faults(MigrationOptions(), (), "source") == []
