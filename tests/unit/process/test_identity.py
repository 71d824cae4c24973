"""A process is known by more than its number."""

from __future__ import annotations

import os
import subprocess
import sys

import attrs
import pytest

from qmpkit.process.identity import Identity, Standing, boot_id, look_for
from qmpkit.testing.leaks import leaks


def identity_of(pid: int) -> Identity:
    found = Identity.of(pid)
    assert found is not None
    return found


def test_a_living_process_is_found() -> None:
    me = identity_of(os.getpid())
    standing, pidfd = look_for(me)
    assert standing is Standing.ALIVE
    assert pidfd is not None
    os.close(pidfd)
    assert 0 < me.age < 7 * 24 * 3600
    assert me.boot == boot_id()


def test_a_zombie_is_told_from_one_that_lives_and_from_one_that_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    identity = identity_of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert look_for(identity) == (Standing.ZOMBIE, None)
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
    assert look_for(identity) == (Standing.GONE, None)
    assert Identity.of(child.pid) is None


def test_a_number_given_again_is_another_process() -> None:
    before = attrs.evolve(identity_of(os.getpid()), started=1)
    with leaks():
        assert look_for(before) == (Standing.REUSED, None)


def test_another_boot_is_another_world() -> None:
    before = attrs.evolve(identity_of(os.getpid()), boot="another")
    assert look_for(before) == (Standing.REBOOTED, None)


def test_plain_data_and_back() -> None:
    me = identity_of(os.getpid())
    assert Identity.from_dict(me.to_dict()) == me


@pytest.mark.parametrize(
    "plain",
    [{}, {"boot": "b", "pid": "1", "started": 1}, {"boot": "b", "pid": 0, "started": 1}],
)
def test_what_is_no_identity(plain: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Identity.from_dict(plain)
