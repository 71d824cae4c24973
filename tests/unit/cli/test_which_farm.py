"""Which farm a command is about: named, or the only one; and a file's."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.cli.exits import Refusal
from qmpkit.cli.naming import machine_names
from qmpkit.cli.which_farm import farm_of_file, which_farm
from qmpkit.process.entries import add


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("QMPKIT_FARM", raising=False)
    return tmp_path


def test_the_only_one_there_is(state: Path) -> None:
    assert which_farm(None) == "qmpkit"
    (state / "lab" / "machines").mkdir(parents=True)
    assert which_farm(None) == "lab"
    (state / "other" / "machines").mkdir(parents=True)
    with pytest.raises(Refusal, match="several farms: lab, other"):
        which_farm(None)
    assert which_farm("other") == "other"


def test_one_that_was_emptied_is_none_beside_others(state: Path) -> None:
    for name in ("lab", "old"):
        (state / name / "machines").mkdir(parents=True)
        add(state / name / "machines" / "journal", {"web": "{}"})
    with pytest.raises(Refusal, match="several farms: lab, old"):
        which_farm(None)
    add(state / "old" / "machines" / "journal", {"web": None})
    assert which_farm(None) == "lab"
    assert machine_names() == ["web"]
    (state / "old" / "farm.json").touch()  # scaled to nothing, and declared all the same
    with pytest.raises(Refusal, match="several farms"):
        which_farm(None)
    (state / "old" / "farm.json").unlink()
    add(state / "lab" / "machines" / "journal", {"web": None})
    with pytest.raises(Refusal, match="several farms: lab, old"):  # nothing tells them apart
        which_farm(None)


def test_one_that_cannot_be_read_counts(state: Path) -> None:
    for name in ("lab", "old"):
        (state / name / "machines").mkdir(parents=True)
    (state / "lab" / "machines" / "journal").mkdir()
    add(state / "old" / "machines" / "journal", {"web": "{}"})
    with pytest.raises(Refusal, match="several farms: lab, old"):
        which_farm(None)


def test_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_FARM", "mine")
    assert which_farm(None) == "mine"
    assert farm_of_file(None, Path("/x/farm.toml")) == "mine"
    with pytest.raises(Refusal, match="--farm"):
        which_farm("../up")
    monkeypatch.setenv("QMPKIT_FARM", "../up")
    with pytest.raises(Refusal, match=r"^\$QMPKIT_FARM \.\./up: '\.\./up' holds a '/'"):
        which_farm(None)
    monkeypatch.setenv("QMPKIT_FARM", "")
    assert which_farm(None) == "qmpkit"


def test_an_empty_option_means_no_other_farm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_FARM", "mine")
    with pytest.raises(Refusal, match="--farm"):
        which_farm("")
    with pytest.raises(Refusal, match="--farm"):
        farm_of_file("", Path("/x/farm.toml"))


@pytest.mark.parametrize(
    ("file", "farm"),
    [
        ("/srv/lab/farm.toml", "lab"),
        ("/srv/lab/web.toml", "web"),
        ("/srv/my lab/farm.toml", "my-lab"),
        ("/farm.toml", "qmpkit"),
    ],
)
def test_of_a_file(file: str, farm: str) -> None:
    assert farm_of_file(None, Path(file)) == farm


def test_names_that_complete(state: Path) -> None:
    assert machine_names() == []
    folder = state / "lab" / "machines"
    folder.mkdir(parents=True)
    add(folder / "journal", {"web2": "{}", "web1": "{}", "gone": "{}"})
    add(folder / "journal", {"gone": None})
    assert machine_names() == ["web1", "web2"]
    other = state / "other" / "machines"
    other.mkdir(parents=True)
    add(other / "journal", {"db": "{}"})
    assert machine_names() == []  # nobody knows which of the two
    add(other / "journal", {"db": None})
    assert machine_names("lab") == ["web1", "web2"]
    assert machine_names("../lab") == machine_names("other") == []
