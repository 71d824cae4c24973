"""A manifest there and back, and everything that is refused of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.templates.manifest import (
    Build,
    GuestHooks,
    Manifest,
    SavedFile,
    located,
    manifest_from_json,
    manifest_to_json,
)


def _file(name: str) -> SavedFile:
    digest = f"xxh3_128:{'0' * 32}"
    return SavedFile(name=name, length=1, mtime_ns=2, checksum=digest, sample=digest)


SAVED = Manifest(
    id="0123abcd",
    created=1.5,
    spec=MachineSpec(
        name="web",
        machine="pc-q35-7.2",
        memory=Memory("1GiB", mem_path="ram", share=True),
        kernel=Kernel(image="kernel", append="quiet"),
        disks=[Disk("disk0.qcow2", format="qcow2")],
    ),
    build=Build(binary="/usr/bin/q", version=(7, 2, 22), package="Debian", accel="tcg"),
    ram="ram",
    files=tuple(_file(name) for name in ("state", "ram", "kernel", "disk0.qcow2")),
    hooks=GuestHooks(program="/run/p", script="/run/s", services=("nginx",)),
)


def _told(change: dict[str, Any]) -> str:
    data = {**json.loads(manifest_to_json(SAVED)), **change}
    with pytest.raises(SpecInvalid) as caught:
        manifest_from_json(json.dumps(data), "here")
    return str(caught.value)


@pytest.mark.parametrize("hooks", [SAVED.hooks, None])
def test_there_and_back(hooks: GuestHooks | None) -> None:
    saved = attrs.evolve(SAVED, hooks=hooks)
    assert manifest_from_json(manifest_to_json(saved), "here") == saved


def test_files_are_where_the_template_is() -> None:
    spec = located(SAVED.spec, Path("/srv/web"))
    assert spec.kernel == Kernel(image="/srv/web/kernel", append="quiet")
    assert (spec.disks[0].file, spec.memory.mem_path) == ("/srv/web/disk0.qcow2", "/srv/web/ram")
    uefi = attrs.evolve(SAVED.spec, firmware=Uefi(code="/usr/c", template="variables"))
    moved = located(uefi, Path("/srv/web")).firmware
    assert moved == Uefi(code="/usr/c", template="/srv/web/variables")
    bios = located(attrs.evolve(SAVED.spec, firmware="firmware"), Path("/srv/web"))
    assert bios.firmware == "/srv/web/firmware"


def test_what_is_no_manifest_is_told() -> None:
    assert "schema: 2 is newer than the 1" in _told({"schema": 2})
    assert "no manifest of a template" in _told({"schema": "1"})
    assert "no manifest of a template" in _told({"spec": []})
    assert "spec: name" in _told({"spec": {"schema": 1, "name": 7}})
    assert "build.version" in _told({"build": {**attrs.asdict(SAVED.build), "version": "7"}})
    with pytest.raises(SpecInvalid, match="this is not JSON"):
        manifest_from_json("{", "here")


def test_what_would_lead_out_of_the_folder_is_refused() -> None:
    files = [attrs.asdict(_file(name)) for name in ("../x", "ram", "state")]
    files[1]["checksum"] = "md5:0"
    told = _told({"files": files})
    assert "'../x' is not in the template's folder" in told
    assert "files[1].checksum: is not xxh3_128" in told
    assert "nothing is known of 'kernel'" in told and "nothing is known of 'disk0.qcow2'" in told
