"""A daemon's loop is not held up by what it has imported."""

from __future__ import annotations

import gc

import pytest

from qmpkit.cli.serve import serve_farm
from qmpkit.server import daemon


async def test_what_is_imported_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    async def run_daemon(*_: object, **__: object) -> None:
        left.append(len(gc.get_objects()))

    monkeypatch.setattr(daemon, "run_daemon", run_daemon)
    before = len(gc.get_objects())
    try:
        await serve_farm("lab", None, None, None)
    finally:
        gc.unfreeze()
    assert left and left[0] < before / 10
