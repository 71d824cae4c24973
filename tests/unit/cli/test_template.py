"""What `qmpkit template`, `clone` and `pool` say no to, before anything is started."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from qmpkit.cli import main
from qmpkit.cli.exits import Refusal
from qmpkit.cli.template_names import known_template, template_names, template_path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def test_a_name_and_a_path(state: Path, tmp_path: Path) -> None:
    assert template_path("web") == state / ".templates" / "web"
    assert template_path("./web") == tmp_path / "web"
    assert template_path("/srv/web") == Path("/srv/web")
    assert template_path("./-x") == tmp_path / "-x"
    assert template_path("my web") == state / ".templates" / "my web"


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("", "it is empty"),
        (".web", "it may not begin with '.', '-' or a space"),
        ("..", "it may not begin with"),
        ("-x", "it may not begin with"),
        ("web ", "nor end with a space"),
        ("a\nb", "it holds a character that cannot be printed"),
        ("a\0b", "it holds a character that cannot be printed"),
        ("x" * 65, "it is longer than 64 bytes"),
        ("./a\nb", "its folder's name cannot be printed"),
        ("a\0b/c", "its folder's name cannot be printed"),
        ("/", "it does not end with the name of a folder"),
        ("web/..", "it does not end with the name of a folder"),
    ],
)
def test_what_is_no_name_is_told_with_a_cure(word: str, why: str) -> None:
    told = f"{re.escape(repr(word))} is no template's name: .*{re.escape(why)}.* Cure: one like web"
    with pytest.raises(Refusal, match=told):
        template_path(word)


@pytest.mark.parametrize("word", ["-x", "a\nb", "./x/.."])
def test_no_command_takes_such_a_name(
    word: str, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    for words in (
        ["clone"],
        ["template", "make", "tiny"],
        ["template", "rm"],
        ["template", "verify"],
    ):
        assert main([*words, "--", word]) == 2
        assert "is no template's name" in " ".join(capsys.readouterr().err.split())
    assert not state.exists()


def test_one_that_is_not_there_is_told_with_what_may_be_meant(state: Path) -> None:
    assert template_names() == []
    with pytest.raises(Refusal, match=r"no template is called 'wep' \(there are: none\)"):
        known_template("wep")
    (state / ".templates" / "web").mkdir(parents=True)
    (state / ".templates" / ".qk-0123456789ab.template").mkdir()
    assert template_names() == ["web"]
    with pytest.raises(Refusal, match="web"):
        known_template("wep")


MICROVM = ["template", "make", "microvm", "web", "--set", "agent=false"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clone", "web"], "no template is called 'web'"),
        (["clone", "./web"], "there is no template: No such file or directory"),
        (["template", "rm"], "which templates?"),
        (["template", "rm", "web"], "no template is called 'web'"),
        (["template", "verify", "web"], "no template is called 'web'"),
        (["template", "inspect", "web"], "no template is called 'web'"),
        (["template", "make", "q35", ".web"], "is no template's name"),
        (MICROVM, "--wait 'login:'"),
        (
            [
                "template",
                "make",
                "microvm",
                "web",
                "--set",
                "agent=false",
                "--wait",
                "x",
                "--run=y",
            ],
            "--run needs a guest agent",
        ),
        (
            [*MICROVM, "--wait=x"],
            "without a guest agent no clone can become somebody",
        ),
        (["template", "make", "q35", "web", "--wait="], "The text is empty."),
        (["template", "make", "tiny", "web", "--service="], "services[0]: '' is no service's name"),
        (["pool", "run", "web"], "what is to be run?"),
        (["pool", "run", "web", "--lines", "--times", "2", "--", "x"], "leave --times out"),
        (["pool", "run", "web", "--jobs", "0", "--", "x"], "0"),
        (["pool", "run", "web", "--", "x"], "no template is called 'web'"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    assert main(words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told
    assert template_names() == []


def test_no_templates_are_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_folder_that_is_no_template_is_told_and_does_not_hide_the_others(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state / ".templates" / "web").mkdir(parents=True)
    assert main(["template", "list"]) == 0
    assert "there is no template" in capsys.readouterr().err
    assert main(["template", "inspect", "web"]) == 2


@pytest.mark.parametrize("words", [["template", "inspect"], ["template", "rm"], ["clone"]])
def test_a_manifest_that_would_be_read_for_ever_is_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    os.mkfifo(folder / "manifest.json")
    assert main([*words, "./web"]) == 2
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/dev/zero")
    assert main([*words, "./web"]) == 2
    told = capsys.readouterr().err
    assert told.count("this is no regular file") == 2 and folder.is_dir()


def test_a_socket_without_a_directory_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "q35", "--set=qemu=/no/such/qemu", "--set=kernel.image=/dev/null"]
    assert main([*words, "--tools-socket", "no/tools"]) == 2
    assert "--tools-socket no/tools: there is no directory" in capsys.readouterr().err


def test_a_saved_machine_writes_to_one_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "manifest.json").touch()
    assert main(["run", "./unit", "--write", "--keep", "layers"]) == 2
    assert "--keep beside them. Cure: leave one out" in " ".join(capsys.readouterr().err.split())
