"""What a clone starts from is there before anything is started, or it is told what is not."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from qmpkit.host.resolve import Resolution
from qmpkit.images.tool import Asked
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.errors import TemplateBroken
from qmpkit.templates.files import frozen
from qmpkit.templates.manifest import Build, Manifest
from qmpkit.templates.saved import CLONES, Saved, provided

BUILD = Build(binary="/usr/bin/q", version=(7, 2, 22), package="Debian", accel="tcg")


async def _saved(folder: Path, ram: Path) -> Saved:
    """A template that was opened when its files were there."""
    (folder / CLONES).mkdir(parents=True, exist_ok=True)
    (folder / "state").write_bytes(b"state")
    asked, spec = Asked("save", folder), MachineSpec(name="web")
    name = "ram" if ram.parent == folder else str(ram)
    files = (await frozen(folder, "state", asked), await frozen(folder, name, asked, ram=True))
    manifest = Manifest(
        id="0123abcd", created=1.5, spec=spec, build=BUILD, ram=name, files=files, hooks=None
    )
    nothing = cast(Resolution, None)  # what only the start of a process would need
    return Saved(folder, manifest, spec, {"disk0": b"overlay"}, nothing)


def _names(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("where", ["web/ram", "elsewhere"])
async def test_a_ram_that_is_gone_is_told(where: str, tmp_path: Path) -> None:
    folder, ram = tmp_path / "web", tmp_path / where
    ram.parent.mkdir(exist_ok=True)
    ram.write_bytes(b"RAM")
    saved = await _saved(folder, ram)
    async with provided(saved, None) as own:
        assert own.folder is not None and own.folder.parent == folder / CLONES
        assert own.overlays["disk0"].read_bytes() == b"overlay"
    ram.unlink()
    before = _names(tmp_path)
    with pytest.raises(TemplateBroken, match=r"(ram|elsewhere): it is missing\. Cure: make"):
        async with provided(saved, None):
            pass
    assert _names(tmp_path) == before
    ram.write_bytes(b"RA")
    with pytest.raises(TemplateBroken, match="it has 2 bytes instead of 3"):
        async with provided(saved, None):
            pass
