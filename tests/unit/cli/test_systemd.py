"""The units that `qmpkit systemd` prints: what they say, and that systemd takes them."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from qmpkit.cli import linger
from qmpkit.cli.app import run
from qmpkit.cli.exits import Refusal
from qmpkit.cli.systemd import Units, units_of

ODD = "la b%,\"$x'é"
COMMAND = ["/opt/my python/bin/qmpkit"]


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("QMPKIT_STATE_DIR", "QMPKIT_RUNTIME_DIR", "XDG_STATE_HOME", "QMPKIT_FARM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def _said(units: Units, kind: str) -> dict[str, list[str]]:
    """What a unit says by key."""
    (text,) = (text for name, text in units.files.items() if name.endswith(kind))
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            said.setdefault(key, []).append(value)
    return said


def test_of_the_system() -> None:
    units = units_of("lab", COMMAND, None, user=False)
    assert list(units.files) == ["qmpkit-lab.socket", "qmpkit-lab.service"]
    service, listening = _said(units, "service"), _said(units, "socket")
    assert service["ExecStart"] == ['"/opt/my python/bin/qmpkit" serve --farm lab']
    assert (service["KillMode"], service["Type"]) == (["process"], ["notify"])
    assert (service["OOMPolicy"], service["NoNewPrivileges"]) == (["continue"], ["yes"])
    assert service["WantedBy"] == ["multi-user.target"]
    assert (listening["ListenStream"], listening["SocketMode"]) == (
        ["%t/qmpkit-api/lab/http"],
        ["0600"],
    )
    assert listening["ExecStartPre"][0].endswith("-m 0700 %t/qmpkit-api/lab")


def test_of_a_user() -> None:
    units = units_of("lab", COMMAND, None, user=True)
    service, listening = _said(units, "service"), _said(units, "socket")
    assert service["WantedBy"] == ["default.target"]
    assert "NoNewPrivileges" not in service, "rootless networks need a setuid helper"
    assert (listening["ListenStream"], listening["DirectoryMode"]) == (
        ["%t/qmpkit-api/lab/http"],
        ["0700"],
    )
    assert units.enabling.startswith("systemctl --user ")


def test_of_a_group() -> None:
    units = units_of("lab", COMMAND, "vms", user=False)
    service, listening = _said(units, "service"), _said(units, "socket")
    assert service["ExecStart"][0].endswith("serve --farm lab --group vms")
    assert (listening["SocketMode"], listening["SocketGroup"]) == (["0660"], ["vms"])
    assert "-m 0750 -g vms" in listening["ExecStartPre"][0]
    with pytest.raises(Refusal, match="gives no group"):
        units_of("lab", COMMAND, "vms", user=True)


def test_a_group_with_an_odd_name_is_one_word() -> None:
    units = units_of("lab", COMMAND, "domain users$ 5%", user=False)
    service, listening = _said(units, "service"), _said(units, "socket")
    assert service["ExecStart"][0].endswith(' --group "domain users$$ 5%%"')
    assert listening["SocketGroup"] == ["domain users$ 5%%"]
    assert ' -g "domain users$$ 5%%" ' in listening["ExecStartPre"][0]
    for strange in ("", "vms\nExecStartPre=/bin/true"):
        with pytest.raises(Refusal, match="no name of a group"):
            units_of("lab", COMMAND, strange, user=False)


def test_what_to_say_next_means_the_same_to_a_shell() -> None:
    units = units_of("my lab", COMMAND, None, user=False)
    said = units.enabling.rpartition("enable --now ")[2]
    assert shlex.split(said) == list(units.files)


def test_places_that_are_empty_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_STATE_DIR", "")
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", "")
    units = units_of("lab", COMMAND, None, user=True)
    assert "Environment" not in _said(units, "service")


def test_places_of_ones_own_are_the_daemons_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", "/tmp/r 50%")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    units = units_of("lab", COMMAND, None, user=True)
    assert _said(units, "service")["Environment"] == [
        '"QMPKIT_RUNTIME_DIR=/tmp/r 50%%"',
        f"XDG_STATE_HOME={tmp_path}",
    ]
    assert _said(units, "socket")["ListenStream"] == ["/tmp/r 50%%-api/lab/http"]


def test_a_path_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", "/tmp/" + "r" * 90)
    with pytest.raises(Refusal, match="longer than 107 bytes"):
        units_of("lab", COMMAND, None, user=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("farm", ["lab", ODD])
@pytest.mark.parametrize("user", [False, True])
def test_systemd_takes_them(farm: str, user: bool, tmp_path: Path) -> None:
    command = tmp_path / "my 100% $qmpkit"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    units = units_of(farm, [str(command)], None, user=user)
    for name, text in units.files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user" if user else "--system", *units.files],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning", "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "qmpkit" in line]
    assert (done.returncode, complaints) == (0, [])


def test_they_are_installed_and_others_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["systemd", "--farm", "lab", "--user", "--install"]
    assert [run(words), run(words)] == [0, 0]
    folder = tmp_path / "config" / "systemd" / "user"
    assert sorted(file.name for file in folder.iterdir()) == [
        "qmpkit-lab.service",
        "qmpkit-lab.socket",
    ]
    assert "systemctl --user enable --now qmpkit-lab.socket" in capsys.readouterr().err
    (folder / "qmpkit-lab.socket").write_text("[Socket]\n")
    assert run(words) == 2
    assert (folder / "qmpkit-lab.socket").read_text() == "[Socket]\n"


@pytest.mark.parametrize("lingers", [True, False])
def test_lingering_is_looked_for(
    lingers: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(linger, "_LINGER", tmp_path)
    if lingers:
        (tmp_path / name).touch()
    assert run(["systemd", "--farm", "lab", "--user"]) == 0
    assert (f"loginctl enable-linger {name}" in capsys.readouterr().err) is not lingers
    assert run(["systemd", "--farm", "lab"]) == 0
    assert "linger" not in capsys.readouterr().err, "the system's lives anyway"


def test_a_daemon_that_would_end_with_the_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "_LINGER", tmp_path)
    monkeypatch.setattr(linger, "_LOGIND", tmp_path)
    monkeypatch.setattr(linger, "root_by_rule", lambda: Path("/run/user/1000/qmpkit"))
    assert "enable-linger" in linger.session_problem()
    monkeypatch.setattr(linger, "root_by_rule", lambda: Path("/run/qmpkit"))
    assert linger.session_problem() == ""
    monkeypatch.setattr(linger, "root_by_rule", lambda: Path("/run/user/1000/qmpkit"))
    monkeypatch.setattr(linger, "_LOGIND", tmp_path / "nothing")
    assert linger.session_problem() == ""
