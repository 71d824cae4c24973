"""A real bash completes with the script that `qmpkit completion bash` prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from qmpkit.cli.app import app, run
from qmpkit.cli.completion import completion_script
from qmpkit.process.entries import add
from qmpkit.spec.profile import profile_names

# Loads the script as a person does, then asks readline's way: COMP_WORDS, COMPREPLY.
_ASK = """
set -u
source "$1"; shift
spec=$(complete -p qmpkit)
[[ "$spec" == *"-o default"* ]] || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
_qmpkit
printf '%s\\n' "${COMPREPLY[@]}"
"""


class Bash:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "completion.bash"
        self.script.write_text(completion_script(app, "bash"))
        program = folder / "qmpkit"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qmpkit.cli "$@"\n')
        program.chmod(0o755)

    def complete(self, *words: str) -> list[str]:
        """What Tab offers after *words*, the last of which is being typed."""
        ran = subprocess.run(
            ["bash", "--norc", "-c", _ASK, "bash", str(self.script), "qmpkit", *words],
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert ran.returncode == 0, ran.stderr
        return [line for line in ran.stdout.split("\n") if line]


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    return Bash(tmp_path)


@pytest.mark.parametrize("command", ["run", "argv"])
def test_a_profiles_name(bash: Bash, command: str) -> None:
    assert bash.complete(command, "") == list(profile_names())
    assert bash.complete(command, "q3") == ["q35", "q35-uefi"]
    assert bash.complete(command, "--paused", "micro") == ["microvm"]


def test_no_profile_fits_so_readline_completes_paths(bash: Bash) -> None:
    assert bash.complete("run", "./we") == []


def test_commands_and_options(bash: Bash) -> None:
    words = ["doctor", "run", "profiles", "argv", "validate", "qmp", "host", "image", "backup"]
    words += ["template", "clone", "pool", "completion"]
    words_of_image = ["info", "create", "overlay", "check", "resize", "convert", "rebase"]
    words_of_image += [
        "commit",
        "compare",
        "map",
        "measure",
        "bench",
        "amend",
        "snapshot",
        "bitmap",
        "key",
        "build",
    ]
    words_of_image += ["pull", "ls", "rm", "gc", "verify"]
    assert bash.complete("")[: len(words)] == words
    assert bash.complete("pro") == ["profiles"]
    assert bash.complete("run", "--he") == ["--headless", "--help"]
    assert bash.complete("completion", "b") == ["bash"]
    assert bash.complete("validate", "--j") == ["--json"]
    assert bash.complete("image", "co") == ["convert", "commit", "compare"]
    assert bash.complete("image", "snapshot", "") == ["list", "create", "apply", "delete"]
    assert bash.complete("image", "") == words_of_image
    assert bash.complete("image", "key", "") == ["list", "add", "remove", "change"]
    assert bash.complete("image", "amend", "--compat", "") == ["0.10", "1.1"]
    assert bash.complete("image", "check", "--repair", "a") == ["all"]
    assert bash.complete("image", "create", "--format", "v") == ["vmdk", "vdi", "vhdx", "vpc"]
    assert bash.complete("image", "info", "--format", "qc") == ["qcow2", "qcow"]
    assert bash.complete("image", "build", "") == ["debian"]
    assert bash.complete("run", "--firmware", "") == ["bios", "uefi"]
    assert bash.complete("doctor", "--require", "vh") == ["vhost-net"]


def test_names_of_images(bash: Bash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_IMAGES_DIR", str(tmp_path / "images"))
    assert bash.complete("image", "pull", "debian-") == ["debian-13", "debian-12"]
    assert bash.complete("image", "rm", "") == []
    (tmp_path / "images" / "names").mkdir(parents=True)
    for name in ("web", "db", "db.draft"):
        (tmp_path / "images" / "names" / name).touch()
    assert bash.complete("image", "rm", "") == ["db", "web"]
    assert bash.complete("image", "verify", "w") == ["web"]


def test_names_of_templates(bash: Bash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    assert bash.complete("template", "") == ["make", "list", "inspect", "verify", "rm"]
    assert bash.complete("clone", "") == []
    for name in ("web", "db", ".qk-0123456789ab.template"):
        (tmp_path / ".templates" / name).mkdir(parents=True)
    assert bash.complete("clone", "") == ["db", "web"]
    assert bash.complete("template", "rm", "db", "w") == ["web"]
    assert bash.complete("pool", "run", "w") == ["web"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["stop", ""], []),  # there are two farms
        (["stop", "--farm", "lab", "web1", "w"], ["web1", "web2"]),
        (["events", "--farm=shop", "--machine", ""], ["till"]),
        (["console", "--farm", "nowhere", ""], []),
        (["console", "--farm", ""], ["lab", "shop"]),
    ],
)
def test_machines_of_the_farm_that_is_named(
    words: list[str],
    offered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for farm, machine in (("lab", "web1"), ("lab", "web2"), ("shop", "till")):
        folder = tmp_path / farm / "machines"
        folder.mkdir(parents=True, exist_ok=True)
        add(folder / "journal", {machine: "{}"})
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("QMPKIT_FARM", raising=False)
    assert run(["__complete", *words]) == 0
    assert capfd.readouterr().out.split()[1:] == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_a_script(shell: Literal["zsh", "fish"]) -> None:
    script = completion_script(app, shell)
    assert "qmpkit" in script
    for word in ("profiles", "headless", "tools-socket", "__complete", "source-format", "require"):
        assert word in script
    assert ("compadd -d _cyc_disp -a _cyc_vals || _files\n" in script) is (shell == "zsh")
