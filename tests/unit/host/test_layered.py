"""An image below a snapshot's layer is known as such, as long as the layer is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import attrs
import pytest

from qmpkit import Disk, MachineSpec
from qmpkit.host.layered import layer_above, layered_problems, mark_layered


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "web.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    try:
        os.setxattr(path, "user.test", b"")
    except OSError:
        pytest.skip("the file system of temporary files has no extended attributes")
    return path


def _overlay(base: Path, name: str) -> Path:
    path = base.with_name(name)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", f"./{base.name}", "-F", "qcow2"]
    subprocess.run([*words, path], check=True, cwd=base.parent)
    return path


def test_it_is_told_with_what_is_above_it(base: Path) -> None:
    layer = _overlay(base, "web.one.qcow2")
    assert layer_above(base) is None
    mark_layered(base, layer)
    assert layer_above(base) == layer
    disk = Disk(base, format="qcow2")
    (problem,) = layered_problems(MachineSpec(name="a", disks=[disk]))
    assert problem.fault.path == "disks[0].file"
    assert "web.one.qcow2" in problem.fault.hint
    reading = attrs.evolve(disk, readonly=True)
    assert not list(layered_problems(MachineSpec(name="a", disks=[reading])))
    assert not list(layered_problems(MachineSpec(name="a", disks=[Disk(layer, format="qcow2")])))


def test_without_the_layer_nothing_is_in_the_way(base: Path) -> None:
    layer = _overlay(base, "web.one.qcow2")
    mark_layered(base, layer)
    layer.unlink()
    assert layer_above(base) is None
    layer.write_text("another file")
    assert layer_above(base) is None


def test_an_image_that_is_not_there_is_somebody_elses_matter(tmp_path: Path) -> None:
    mark_layered(tmp_path / "nothing", tmp_path / "layer")
    assert layer_above(tmp_path / "nothing") is None
