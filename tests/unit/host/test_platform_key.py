"""A platform key is found where there is one that counts, and nowhere else."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from qmpkit.host.firmware import installed_firmware
from qmpkit.host.platform_key import has_platform_key
from tests.unit.host.uefi_store import GLOBAL, variable

OTHER = uuid.UUID(int=5)
HEAD = b"_FVH" + bytes(96)
PK = variable("PK")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEAD + PK, True),
        (PK, True),
        (HEAD + variable("KEK") + PK + variable("db"), True),
        (HEAD + variable("PK", state=0x3E), True),  # a new one is being written
        (HEAD + variable("PK", state=0x3C) + PK, True),  # replaced
        (HEAD + variable("PK", state=0x3D), False),  # deleted
        (HEAD + variable("PK", state=0x3C), False),
        (HEAD + variable("PK", state=0x7F), False),  # its header alone is written
        (HEAD + variable("PK", OTHER), False),
        (HEAD + variable("PKDefault"), False),
        (HEAD + variable("KEK"), False),
        (HEAD + GLOBAL.bytes_le + "PK\0".encode("utf-16-le"), False),
        (HEAD + bytes(44) + PK[44:], False),
        (PK[2:], False),
        (PK[42:], False),
        (PK[44:], False),
        (PK[:60], False),
        (b"", False),
        (bytes(1 << 16), False),
    ],
)
def test_where_there_is_one(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "store").write_bytes(content)
    assert has_platform_key(tmp_path / "store") is expected


def test_the_hosts_own_stores_are_as_they_are_described() -> None:
    raw = [found for found in installed_firmware() if found.template_format == "raw"]
    if not raw:
        pytest.skip("needs ovmf or qemu-efi-aarch64")
    for found in raw:
        assert has_platform_key(Path(found.template)) is ("enrolled-keys" in found.features)
