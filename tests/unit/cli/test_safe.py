"""No name or word of others commands the terminal of the person who reads it."""

from __future__ import annotations

import io
import os
import shlex
import subprocess

import pytest
from rich.table import Table

from qmpkit.cli import talk as talk_module
from qmpkit.cli.app import run
from qmpkit.cli.image_view import print_chain
from qmpkit.cli.safe import one_line, several_lines, shell_word
from qmpkit.cli.talk import talk
from qmpkit.errors import Fault, ImageFailed, SpecInvalid
from tests.unit.cli.images import snapshot_named, some_image

TITLE = "s\x1b]0;pwned\x07\x1b[31mred"
SHOWN = r"s\x1b]0;pwned\x07\x1b[31mred"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 漢字 └ …", "plain äöü 漢字 └ …"),
        (TITLE, SHOWN),
        ("a\nb\rc\td\0e\x7f", r"a\nb\rc\td\x00e\x7f"),
        ("\x9b31m", r"\u009b31m"),  # what begins a command in eight bits
        ("gpj.\u202etxt\U000e0001", r"gpj.\u202etxt\U000e0001"),
        (os.fsdecode(b"\xff.qcow2"), r"\xff.qcow2"),
        ("a\u3000b", "a\u3000b"),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_lines_that_are_meant() -> None:
    assert several_lines("a\r\n\tb\x1b\rc\n") == "a\n\tb\\x1b\\rc\n"


@pytest.mark.parametrize("name", ["plain", "it's", TITLE, "it's\n\x1b'ab\\", b"\xff\xc3\xa4\x01a"])
def test_a_word_for_a_shell(name: str | bytes) -> None:
    """It is that word again in a shell, and nothing in a terminal."""
    plain = os.fsencode(name)
    word = shell_word(os.fsdecode(plain))
    assert word.isprintable()
    printf = ["bash", "-c", f"printf %s {word}"]
    assert subprocess.run(printf, capture_output=True, check=True).stdout == plain


def test_printable_words_are_quoted_as_everywhere() -> None:
    assert shell_word("it's ä") == shlex.quote("it's ä")


def test_everything_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for say in (talk.say, talk.note, talk.warn, talk.error, talk.trace):
        say(TITLE)
    talk.note("a name\nerror: forged")
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said.count(SHOWN) == 5
    assert said.endswith("a name\\nerror: forged\n")


def test_qemus_words_keep_their_lines_and_names_have_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> str:
        def list_profiles(**_: object) -> None:
            raise error

        monkeypatch.setattr("qmpkit.cli.listing.list_profiles", list_profiles)
        run(["profiles"])
        return capsys.readouterr().err

    assert fail(ImageFailed("x", "read", "one\ntwo\x1b[2J")) == (
        "error: cannot read 'x': one\ntwo\\x1b[2J.\n"
    )
    assert fail(SpecInvalid([Fault("", "no\nerror: forged")], "a\nb")) == (
        "error: a\\nb: no\\nerror: forged\n"
    )
    assert fail(FileNotFoundError(2, "gone", "a\nb")) == "error: a\\nb: gone\n"
    assert "\\x1b[31m" in fail(KeyError("\x1b[31m")), "a traceback shows others' text, too"


def test_an_image_of_a_stranger(capsys: pytest.CaptureFixture[str]) -> None:
    image = some_image(f"/x/{TITLE}\n", backing=TITLE, snapshots=(snapshot_named(TITLE),))
    print_chain([image], "format qcow2")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count(SHOWN) == 4, "its path, its base, the snapshots' heading and name"


def test_what_was_forgotten_is_caught_by_the_console() -> None:
    console = talk_module._SafeConsole(file=io.StringIO(), force_terminal=True, width=80)
    table = Table("HEAD")
    table.add_row(TITLE)
    console.print(table, f"[bold]{TITLE}[/bold]")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "pwned" in shown
    assert "\x1b]0;" not in shown and "\x1b[31m" not in shown
    assert "\x1b[1m" in shown, "our own styles do work"
