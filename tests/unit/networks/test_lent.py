"""A tap device from QEMU's helper; here the helper is a script that does as it is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qmpkit import HostLacks
from qmpkit.networks import lent
from qmpkit.networks.lent import lent_tap
from qmpkit.testing.leaks import leaks

NULL = Path("/dev/null").stat().st_rdev
SENDS = """
import os, socket, sys
assert sys.argv[1:] == ["--use-vnet", "--br=br0", "--fd=3"], sys.argv
with socket.socket(fileno=3) as sock, open("/dev/null") as device:
    socket.send_fds(sock, [b"x"], [device.fileno()])
"""


def helper(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "qemu-bridge-helper"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    monkeypatch.setattr(lent, "PLACES", (str(folder),))
    return path


async def test_the_device_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, SENDS, monkeypatch)
    async with leaks():
        fd = await lent_tap("br0")
        assert os.fstat(fd).st_rdev == NULL
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.exit('access denied by acl file')", "access denied by acl file"),
        ("", "sent no tap device on 'br0'"),
    ],
)
async def test_a_refusal_says_what_to_do(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = helper(tmp_path, program, monkeypatch)
    async with leaks():
        with pytest.raises(HostLacks, match=told) as caught:
            await lent_tap("br0")
    if program:
        assert f"sudo chmod u+s {path}" in str(caught.value)
        assert "echo 'allow br0' | sudo tee -a /etc/qemu/bridge.conf" in str(caught.value)


async def test_without_helper_and_without_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lent, "PLACES", (str(tmp_path),))
    with pytest.raises(HostLacks, match="need CAP_NET_ADMIN or QEMU's bridge helper"):
        await lent_tap("br0")
