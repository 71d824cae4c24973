"""`qmpkit validate`: a farm as a table and as JSON, or all its faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmpkit.cli import main

FARM = """
schema = 1
[networks.lan]
kind = "segment"
subnet = "10.1.0.0/24"
[networks.out]
kind = "nat"
[machines.db]
networks = [{ name = "lan", ip = "10.1.0.2" }]
disks = [{ file = "db.img", format = "raw" }]
[machines.web]
count = 2
profile = "q35"
networks = ["lan", "out"]
ports = ["0:80"]
restart = "always"
requires = ["db"]
[[machines.web.disks]]
file = "{name}.qcow2"
format = "qcow2"
make = { file = "debian.qcow2", format = "qcow2" }
[machines.plain]
profile = "tiny-microvm"
"""


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    path = tmp_path / "farm.toml"
    path.write_text(FARM)
    return path


def test_a_farm_as_tables(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(farm)]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:4] == ["MACHINE", "BOARD", "MEMORY", "CPUS"]
    assert rows[1] == ["db", "q35", "512MiB", "1", "db.img", "lan", "10.1.0.2", "-", "never", "-"]
    overlay = ["web1.qcow2", "over", "debian.qcow2"]
    assert rows[2] == [
        *["web1", "q35", "1GiB", "2", *overlay, "lan,", "out", "any:80", "always", "db"]
    ]
    assert [row[0] for row in rows[3:5]] == ["web2", "plain"]
    assert rows[6] == ["NETWORK", "KIND", "MADE", "OF"]
    assert rows[7] == ["lan", "segment", "socket", "dgram,", "subnet", "10.1.0.0/24"]
    assert rows[8] == ["out", "nat", "-"]
    assert err == "no faults: 4 machines, 2 networks\n"


def test_a_farm_as_json(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(farm), "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert (data["faults"], err) == ([], "")
    assert [machine["name"] for machine in data["machines"]] == ["db", "web1", "web2", "plain"]
    assert data["machines"][1]["requires"] == ["db"]
    assert data["networks"]["out"] == {"kind": "nat", "restrict": False}


def test_all_faults(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    farm.write_text(FARM.replace('"tiny-microvm"', '"tiny-microv"').replace('"raw"', '"rwa"'))
    assert main(["validate", str(farm)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {farm}: 2 faults:",
        "  - machines.plain.profile: there is no profile 'tiny-microv'"
        " (did you mean 'tiny-microvm'?)",
        "  - machines.db.disks[0].format: must be one of 'raw', 'qcow2', 'luks', not 'rwa'"
        " (did you mean 'raw'?)",
    ]
    assert main(["validate", str(farm), "--json"]) == 2
    out, _ = capsys.readouterr()
    assert [fault["path"] for fault in json.loads(out)["faults"]] == [
        "machines.plain.profile",
        "machines.db.disks[0].format",
    ]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.toml"
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: cannot be read: No such file or directory\n"


def test_it_loads_no_trio(farm: Path) -> None:
    code = (
        "import sys; from qmpkit.cli import main; main(['validate', sys.argv[1], '--json']);"
        "print('trio' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(farm)], capture_output=True, text=True, check=True
    )
    assert ran.stderr == "False\n"
