"""What is laid ready in guests, tried on this host as far as that is harmless."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import trio

from qmpkit.operations.agent import Agent
from qmpkit.operations.completed import Completed
from qmpkit.operations.errors import GuestCommandFailed
from qmpkit.templates.guest import become, reseeder, stop_services
from qmpkit.templates.manifest import GuestHooks
from qmpkit.templates.specs import Somebody

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


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ("service web start\n", 0, ""),
        ("service none start\nservice web start\n", 4, "none is unknown"),
        ("ssh-host-keys new\nservice none start\n", 6, "ssh-keygen"),
        ("mac 52:54:00:00:00:0a 52:54:00:00:00:0b\nssh-host-keys new\n", 3, "no NIC took"),
    ],
)
def test_the_script_tells_by_its_status_what_has_failed(
    lines: str, status: int, said: str, tmp_path: Path
) -> None:
    """In a guest without `ssh-keygen`, `ip` and systemd, with one service."""
    text = SCRIPT.read_text()
    for place in ("/etc/ssh/", "/sys/class/net/"):
        (tmp_path / place[1:]).mkdir(parents=True)
        text = text.replace(place, f"{tmp_path}{place}")
    script, programs = tmp_path / "script.sh", tmp_path / "bin"
    script.write_text(text)
    programs.mkdir()
    (programs / "rm").symlink_to(shutil.which("rm") or "")
    service = programs / "service"
    service.write_text('#!/bin/sh\nread -r a && exit 9\n[ $1 = web ] || echo "$1 is unknown"\n')
    with service.open("a") as file:
        file.write("[ $1 = web ]\n")
    service.chmod(0o700)
    ended = subprocess.run(
        ["/bin/sh", script],
        input=lines,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, said in ended.stdout + ended.stderr) == (status, True)
    assert not script.exists()


class FailingAgent:
    """Of a guest in which every program ends with `status`."""

    name = "web"

    def __init__(self, status: int | None) -> None:
        self.status = status

    async def run(self, argv: Sequence[str], **_: object) -> Completed:
        await trio.lowlevel.checkpoint()
        signal = 9 if self.status is None else None
        raise GuestCommandFailed(
            self.name, Completed(tuple(argv), self.status, signal, b"", b"why")
        )


@pytest.mark.parametrize(
    ("status", "cures"),
    [
        (1, ["--twin"]),
        (2, ["openssh-client", "`ssh_host_keys` (--ssh-host-keys)"]),
        (4, ["`services`, --service"]),
        (6, ["openssh-client", "`services`, --service"]),
        (0x80 | 38, ["--twin"]),  # ENOSYS, which the program told: no part of the script has run
        (None, ["--twin"]),
    ],
)
async def test_who_does_not_become_somebody_is_told_the_cure(
    status: int | None, cures: list[str]
) -> None:
    agent = cast(Agent, FailingAgent(status))
    hooks = GuestHooks(program="/run/p", script="/run/s")
    with pytest.raises(GuestCommandFailed, match=r"why\. Cure: ") as caught:
        await become(agent, hooks, Somebody("web", "", "", "", {}), ssh_host_keys=True)
    assert all(cure in str(caught.value) for cure in cures)
    assert ("ssh" in caught.value.cure) == ("openssh-client" in cures)
    assert caught.value.completed.status == status


async def test_a_service_that_does_not_stop_is_told_with_a_cure() -> None:
    with pytest.raises(GuestCommandFailed, match=r"stop nginx .*Cure: .*`services`, --service"):
        await stop_services(cast(Agent, FailingAgent(5)), ["nginx"])
