"""The pytest plugin in a project of its own, which has not configured pytest-trio."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "import pytest\n"
PAUSED = '@pytest.mark.qmp_machine("q35", memory="16MiB", accel="tcg", qemu="no-such-qemu")\n'


def outcome(project: Path, code: str, *options: str, before: str = "") -> str:
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "test_it.py").write_text(HEAD + code)
    run = f"{before}\nimport sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    words = ["-q", "-p", "no:cacheprovider", *options]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", run, *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.stdout + done.stderr


def test_no_setting_of_pytest_trio_is_needed(tmp_path: Path) -> None:
    said = outcome(tmp_path, f"{PAUSED}async def test_x(qmp_machine): ...\n", "--strict-markers")
    assert "BinaryMissing" in said  # the fixture was run
    assert "requested an async fixture" not in said


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    mark = '@pytest.mark.qmp_machine(memroy="16MiB")\n'
    said = outcome(tmp_path, f"{mark}async def test_x(qmp_machine): ...\n")
    assert "the marker qmp_machine: memroy: unknown key (did you mean 'memory'?)" in said


def test_a_second_profile_is_refused(tmp_path: Path) -> None:
    mark = '@pytest.mark.qmp_machine("q35", "tiny")\n'
    said = outcome(tmp_path, f"{mark}async def test_x(qmp_machine): ...\n")
    assert "the marker qmp_machine: takes one profile" in said


def test_a_spec_of_ones_own_is_run(tmp_path: Path) -> None:
    own = 'qmpkit.MachineSpec(name="mine", accel="tcg", qemu="no-such-qemu")'
    code = f"import qmpkit\n@pytest.mark.qmp_machine({own}, memory='16MiB')\n"
    said = outcome(tmp_path, f"{code}async def test_x(qmp_machine): ...\n")
    assert "BinaryMissing: machine 'mine': no-such-qemu is not" in said


FAKE = """
import os, signal
from contextlib import asynccontextmanager
import gc, pytest, trio
from qmpkit import MachineSpec, VM, running
from qmpkit.testing import guests
from qmpkit.testing.fake_machine import FakeHost

@asynccontextmanager
async def booted():
    def prepare(fake):
        fake.channels["serial0"].send(b"Booting\\r\\n\\x1b[6nlogin: ")
        fake.process.stderr_tail = "qemu: a warning"
    start = FakeHost(prepare).start
    async with running(MachineSpec(name="web", accel="tcg", memory="16MiB"), start=start) as vm:
        await vm.console.expect("login: ")
        yield vm

guests.booted = booted
"""
TOLD = """ console serial0 of machine 'web', its last lines
Booting
\\x1b[6nlogin:\x20
 stderr of the QEMU of machine 'web', its last lines
qemu: a warning
"""


def fake_outcome(project: Path, code: str, *options: str, before: str = "") -> str:
    (project / "conftest.py").write_text(FAKE)
    return outcome(project, f"from conftest import *\n{code}", *options, before=before)


@pytest.mark.parametrize("asked", ["qmp_machine", "broken"])
def test_what_the_guest_said_is_shown_with_a_failure(tmp_path: Path, asked: str) -> None:
    fixture = "@pytest.fixture\nasync def broken(qmp_machine): raise ValueError\n"
    said = fake_outcome(tmp_path, f"{fixture}async def test_x({asked}): assert 0\n")
    assert TOLD in re.sub(" ?-{5,}", "", said)


def test_what_the_guest_said_is_not_shown_of_a_test_that_went_well(tmp_path: Path) -> None:
    code = "async def test_x(qmp_machine): ...\ndef test_y(): assert 0\n"
    said = fake_outcome(tmp_path, code)
    assert "1 failed, 1 passed" in said and "login" not in said


def test_a_machine_that_is_gone_is_not_kept_for_the_whole_run(tmp_path: Path) -> None:
    after = (
        "def test_y():\n gc.collect()\n assert not any(type(o) is VM for o in gc.get_objects())\n"
    )
    assert "2 passed" in fake_outcome(tmp_path, f"async def test_x(qmp_machine): ...\n{after}")


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    # It is ignored by whatever a shell runs in the background.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    press = "os.kill(os.getpid(), signal.SIGINT)\n await trio.sleep_forever()"
    code = f"async def test_x(qmp_machine):\n {press}\ndef test_y(): ...\n"
    said = fake_outcome(tmp_path, code, before=heeded)
    assert "! KeyboardInterrupt !" in said
    assert "no tests ran" in said


def test_without_pytest_trio_the_cure_is_told(tmp_path: Path) -> None:
    hide = (
        "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'pytest_trio' else f(name, *rest)"
    )
    said = outcome(tmp_path, "async def test_x(qmp_machine): ...\n", before=hide)
    assert "needs pytest-trio, which is not installed. Cure: pip install 'qmpkit[testing]'" in said


def test_with_pytest_trio_switched_off_the_cure_is_told(tmp_path: Path) -> None:
    said = outcome(tmp_path, "async def test_x(qmp_machine): ...\n", "-p", "no:trio")
    assert "needs pytest-trio, which is switched off. Cure: no `-p no:trio`" in said
    assert "INTERNALERROR" not in said


FOREIGN = """
def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: as pytest-asyncio's")
"""


@pytest.mark.parametrize(
    ("mark", "test", "cure"),
    [
        ("", "def test_x(qmp_machine, n)", "this test is not async. Cure: async def test_x\n"),
        ("asyncio", "async def test_x(qmp_machine, n)", "pytest-asyncio has this test. Cure: no"),
        ("anyio", "async def test_x(qmp_machine, n)", "anyio's plugin has this test. Cure: no"),
    ],
)
def test_one_that_pytest_trio_cannot_run_is_told_so(
    tmp_path: Path, mark: str, test: str, cure: str
) -> None:
    (tmp_path / "conftest.py").write_text(FOREIGN)
    marks = f"@pytest.mark.parametrize('n', [1])\n{mark and f'@pytest.mark.{mark}'}\n{PAUSED}"
    said = outcome(tmp_path, f"{marks}{test}: ...\n")
    assert f"the qmp_machine fixture runs under pytest-trio, and {cure}" in said
    assert "BinaryMissing" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("mark", "end"),
    [
        ("skip", "1 skipped"),
        ("skipif(True, reason='old')", "1 skipped"),
        ("xfail(run=False)", "1 xfailed"),
    ],
)
def test_one_that_is_not_to_be_run_is_not_told_of(tmp_path: Path, mark: str, end: str) -> None:
    said = outcome(tmp_path, f"@pytest.mark.{mark}\ndef test_x(qmp_machine): ...\n")
    assert f"\n{end} in " in said


def test_other_tests_are_left_alone(tmp_path: Path) -> None:
    assert "1 passed" in outcome(tmp_path, "def test_x(): ...\n")


OLD = """
import sys, pytest
new = pytest.hookimpl
def old(function=None, **how):
    if "wrapper" in how and sys._getframe(1).f_globals["__name__"].startswith("qmpkit"):
        raise TypeError("got an unexpected keyword argument 'wrapper'")
    return new(function, **how)
pytest.hookimpl, pytest.version_tuple = old, (7, 2, 1)
"""
"""As in Debian 12, whose pluggy knows no `wrapper=True`."""


def test_other_tests_are_left_alone_by_an_old_pytest_too(tmp_path: Path) -> None:
    assert "1 passed" in outcome(tmp_path, "def test_x(): ...\n", before=OLD)


def test_with_an_old_pytest_the_cure_is_told(tmp_path: Path) -> None:
    said = outcome(tmp_path, "async def test_x(qmp_machine): ...\n", before=OLD)
    assert "needs pytest 8, and this is 7.2.1. Cure: pip install 'qmpkit[testing]'" in said
    assert "INTERNALERROR" not in said
