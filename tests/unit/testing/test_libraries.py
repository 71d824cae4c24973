from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from qmpkit.testing.guests.libraries import library_closure, needed

SHELL = Path("/bin/sh").resolve()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with a dynamic program's loader and C library in it."""
    for name in needed(SHELL):
        found, _ = library_closure([SHELL], [Path("/")])
        place = next(p for p in found if p.endswith(Path(name).name))
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found[place], tmp_path / place)
    return tmp_path


def test_a_program_names_its_loader_and_its_libraries() -> None:
    names = needed(SHELL)
    assert names[0].startswith("/lib")
    assert any(name.startswith("libc.so") for name in names)


def test_the_closure_follows_what_libraries_need() -> None:
    found, missing = library_closure([Path(sys.executable).resolve()], [Path("/")])
    names = {Path(place).name for place in found}
    assert {"libc.so.6", "libm.so.6"} <= names
    assert missing == ()


def test_what_is_in_no_root_is_told(root: Path) -> None:
    found, missing = library_closure([SHELL], [root])
    assert missing == ()
    for place, file in found.items():
        assert file.is_relative_to(root)
        (root / place).unlink()
    assert library_closure([SHELL], [root]) == ({}, needed(SHELL))


def test_a_link_is_followed_inside_its_tree(root: Path) -> None:
    found, _ = library_closure([SHELL], [root])
    place = next(p for p in found if "libc.so" in p)
    real = root / "elsewhere/libc-real.so"
    real.parent.mkdir()
    (root / place).rename(real)
    (root / place).symlink_to("/elsewhere/libc-real.so")  # absolute: the guest's root is meant
    assert library_closure([SHELL], [root])[0][place] == real
