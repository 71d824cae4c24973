"""The form of a saved state, found out by how its file begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmpkit.machine.state_forms import OpenState

PLAIN = b"QEVM\0\0\0\3\7\0\0\0\x0bpc-q35-10.0\1\0\0\0\2\3ram\0\0\0\0"
MAPPED = b"QEVM\0\0\0\3\7\0\0\0\x0bpc-q35-10.0\5\x1aconfiguration/capabilities\0\nmapped-ram\1"


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (PLAIN, "plain"),
        (PLAIN + b"configuration/capabilities mapped-ram", "plain"),  # a guest has written that
        (MAPPED + PLAIN[20:], "mapped"),
        (b"\x28\xb5\x2f\xfd" + MAPPED, "packed"),
        (b"", "plain"),
    ],
)
def test_the_beginning_tells_the_form(tmp_path: Path, head: bytes, form: str) -> None:
    path = tmp_path / "memory"
    path.write_bytes(head)
    state = OpenState.of(path)
    assert state.form == form
    state.close()
    with pytest.raises(OSError, match="descriptor"):
        os.pread(state.fd, 1, 0)
    state.close()  # which is nothing any more
