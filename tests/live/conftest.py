"""What several live tests set up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmpkit.images import drafts


@pytest.fixture
def qemu_img(qemu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The qemu-img beside each QEMU, and the one that qmpkit finds."""
    folder = Path(qemu).resolve().parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(folder / "qemu-img")


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a new image is drafted: as a file without a name, or where that is impossible."""
    if request.param == "named":

        def refuse(folder: Path) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)
    return str(request.param)
