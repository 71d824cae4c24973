"""What the doctor finds on six recorded hosts; the lines are compared in the command's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.host.doctor import NEEDS, Host, HostReport, Need, examine_host
from tests.unit.host.doctor.recorded import NAMES, recorded


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(name: str, tmp_path: Path) -> Host:
    return recorded(name, tmp_path)


async def _report(name: str, root: Path, *require: Need) -> HostReport:
    return await examine_host(require or ("run",), host=recorded(name, root))


@pytest.mark.parametrize(
    ("name", "kind", "usable", "nested", "accel"),
    [
        ("intel", "hardware", True, True, "kvm"),
        ("amd_denied", "hardware", False, True, "tcg"),
        ("arm", "hardware", True, None, "kvm"),
        ("kvm_pvm", "paravirtual", True, None, "tcg"),
        ("container", "none", False, False, "tcg"),
        ("no_kvm", "none", False, None, None),
    ],
)
async def test_what_kvm_is(
    name: str, kind: str, usable: bool, nested: bool | None, accel: str | None, tmp_path: Path
) -> None:
    report = await _report(name, tmp_path)
    facts = {found.name: found.facts for found in report.findings}
    assert (facts["backend"]["kind"], facts["backend"]["usable"]) == (kind, usable)
    assert facts["nested"]["nested"] == nested
    chosen = facts.get('accel = "auto"')
    assert (chosen and chosen["accel"]) == accel
    assert report.can("kvm") == (accel == "kvm")


async def test_sizes_are_bytes(tmp_path: Path) -> None:
    report = await _report("amd_denied", tmp_path)
    facts = {found.name: found.facts for found in report.findings}
    assert facts["RAM"]["total"] == 528187104 << 10
    assert facts["RAM"]["cgroup_left"] == 60 << 30
    assert facts["huge pages"]["pools"][0] == {"size": 2 << 20, "total": 8192, "free": 4096}
    assert [node["cpus"] for node in facts["NUMA"]["nodes"]] == ["0-31,64-95", "32-63,96-127"]


async def test_what_is_lacking_has_a_cure(name: str, host: Host) -> None:
    """On its own line or, for KVM, on another: a cure is written once."""
    report = await examine_host(host=host)
    for need in (need for need in NEEDS if not report.can(need)):
        guilty = [found for found in report.findings if need in found.lacks]
        assert any(found.cure for found in guilty) or need in ("nested", "hugepages"), need
    cures = [found.cure for found in report.findings if found.cure and found.topic == "KVM"]
    assert len(cures) == len(set(cures))


async def test_only_what_is_required_fails(name: str, host: Host) -> None:
    report = await examine_host([], host=host)
    assert report.ok
    everything = await examine_host(NEEDS, host=host)
    failed = {found.name for found in everything.findings if found.verdict == "fail"}
    assert failed == {found.name for found in report.findings if found.lacks}
