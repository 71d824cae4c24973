"""`import qmpkit` is lazy, complete and typed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qmpkit

SOURCE = Path(qmpkit.__file__).read_text()


@pytest.mark.parametrize("name", qmpkit.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(qmpkit, name) is not None


def test_type_checkers_see_every_public_name() -> None:
    block = next(n for n in ast.parse(SOURCE).body if isinstance(n, ast.If))
    typed = {a.asname for n in ast.walk(block) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == set(qmpkit.__all__) - {"__version__"}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'libvirt'"):
        qmpkit.libvirt  # noqa: B018


def test_import_loads_no_heavy_module() -> None:
    code = "import sys, qmpkit; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "qmpkit" in loaded
    assert not {"trio", "attrs", "attr", "cattrs", "qemu.qmp", "asyncio"} & set(loaded)


def test_dir_lists_public_names() -> None:
    assert "SpecInvalid" in dir(qmpkit)
