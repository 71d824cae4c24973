"""What is laid ready in guests, tried on this host as far as that is harmless."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from qmpkit.templates.guest import reseeder

X86 = platform.machine() == "x86_64"
SCRIPT = Path(__file__).parents[3] / "qmpkit" / "templates" / "become.sh"


def test_there_is_none_for_what_it_was_not_tried_on() -> None:
    assert reseeder("aarch64") is None


@pytest.mark.skipif(not X86, reason="the program is one for x86_64")
@pytest.mark.parametrize("input", [b"", b"\0", b"\0" * 87])
def test_with_too_little_input_the_program_changes_nothing(input: bytes, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(reseeder("x86_64") or b"")
    program.chmod(0o700)
    marker = ["/bin/touch", str(tmp_path / "went-on")]
    ended = subprocess.run([program, *marker], input=input, check=False)
    assert ended.returncode == 0x80
    assert not (tmp_path / "went-on").exists()


def test_the_script_is_one_for_any_shell() -> None:
    assert subprocess.run(["sh", "-n", SCRIPT], check=False).returncode == 0
    ended = subprocess.run(
        ["sh", "-s"], input=SCRIPT.read_bytes().replace(b'rm -f "$0" "${0%.sh}"', b""), check=False
    )
    assert ended.returncode == 0  # it reads itself, and finds nothing that it knows
