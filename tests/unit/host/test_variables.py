"""Where the TSC's frequency comes from, and when it is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.host import variables
from qmpkit.host.variables import host_variables, read_tsc_khz

CONSTANT = (
    "processor\t: 0\ncpu MHz\t\t: 1200.000\nflags\t\t: tsc constant_tsc\nbogomips\t: 5192.24\n"
)


def cpuinfo(root: Path, text: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(text)
    return root


def test_bogomips_and_not_the_momentary_clock(tmp_path: Path) -> None:
    assert read_tsc_khz(cpuinfo(tmp_path, CONSTANT), "x86_64") == 2_596_120


def test_sysfs_comes_before_cpuinfo(tmp_path: Path) -> None:
    root = cpuinfo(tmp_path, CONSTANT)
    cpu0 = root / "sys/devices/system/cpu/cpu0"
    cpu0.mkdir(parents=True)
    (cpu0 / "tsc_freq_khz").write_text("2596124\n")
    assert read_tsc_khz(root, "x86_64") == 2_596_124


def test_kvm_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "tsc_khz_of", lambda path: 3_000_000)
    assert read_tsc_khz(cpuinfo(tmp_path, CONSTANT), "x86_64") == 3_000_000


@pytest.mark.parametrize(
    "text",
    [
        "flags\t\t: tsc\nbogomips\t: 5192.24\n",
        "flags\t\t: tsc constant_tsc\n",
        "flags\t\t: tsc constant_tsc\nbogomips\t: many\n",
        "",
    ],
    ids=["counter not constant", "no bogomips", "garbage", "empty"],
)
def test_unknown(tmp_path: Path, text: str) -> None:
    assert read_tsc_khz(cpuinfo(tmp_path, text), "x86_64") is None


def test_other_cpus_have_no_tsc(tmp_path: Path) -> None:
    assert read_tsc_khz(cpuinfo(tmp_path, CONSTANT), "aarch64") is None


def test_only_what_is_used_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[None] = []

    def counted() -> int:
        calls.append(None)
        return 2_000_000

    variables._tsc_khz.cache_clear()
    monkeypatch.setattr(variables, "read_tsc_khz", counted)
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path))
    try:
        assert host_variables(frozenset()) == {}
        assert host_variables(frozenset({"cache"})) == {"cache": str(tmp_path)}
        assert not calls
        assert host_variables(frozenset({"tsc_khz"})) == {"tsc_khz": "2000000"}
        assert host_variables(frozenset({"tsc_khz"})) == {"tsc_khz": "2000000"}
        assert len(calls) == 1
    finally:
        variables._tsc_khz.cache_clear()
