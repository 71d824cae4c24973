"""`python -m qmpkit.testing.guests` for somebody who has not what it needs."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import runpy, sys
sys.modules["elftools"] = None
sys.argv = ["guests", "tiny"]
runpy.run_module("qmpkit.testing.guests", run_name="__main__")
"""


def test_it_says_which_extra_is_missing() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert ran.returncode == 3
    assert ran.stderr.startswith("tiny: the test guests need elftools")
    assert "pip install 'qmpkit[testing]'" in ran.stderr and "Traceback" not in ran.stderr
