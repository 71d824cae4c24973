"""The pytest plugin in a project of its own, which has not configured pytest-trio."""

from __future__ import annotations

import os
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


def test_other_tests_are_left_alone(tmp_path: Path) -> None:
    assert "1 passed" in outcome(tmp_path, "def test_x(): ...\n")
