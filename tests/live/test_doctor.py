"""The doctor on this very host: what it says is what other programs and the kernel say."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit.host import binary
from qmpkit.host.doctor import Host, examine_host, qemus
from qmpkit.testing.leaks import leaks

pytestmark = pytest.mark.live

_SLOW = "Asking each QEMU what it can do; the answers are kept …\n"


def command(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qmpkit.cli", "doctor", *argv],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--json` says when no QEMU has been asked before."""
    cache = tmp_path_factory.mktemp("cache")
    done = command("--json", QMPKIT_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    binaries = list(_binaries(report))
    assert len(list((cache / "binaries").glob("*.schema.json"))) == len(binaries)
    return report


def _facts(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in report["findings"] if f["name"] == name)["facts"]
    return found


def _binaries(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in report["findings"]:
        if found["topic"] == "QEMU":
            facts = found["facts"]
            yield from facts.get("binaries", [facts] if "path" in facts else [])


def test_every_qemu_by_its_own_version(report: dict[str, Any]) -> None:
    on_path = {
        shutil.which(entry.name)
        for folder in os.get_exec_path()
        if Path(folder).is_dir()
        for entry in Path(folder).glob("qemu-system-*")
    }
    binaries = list(_binaries(report))
    assert {found["path"] for found in binaries} == on_path - {None}
    for found in binaries:
        said = subprocess.run([found["path"], "--version"], capture_output=True, text=True).stdout
        assert said.startswith(f"QEMU emulator version {'.'.join(map(str, found['version']))}")
        listed = subprocess.run([found["path"], "-accel", "help"], capture_output=True, text=True)
        assert set(found["accelerators"]) <= set(listed.stdout.split())


def test_processors_and_memory(report: dict[str, Any]) -> None:
    assert _facts(report, "processors")["usable"] == len(os.sched_getaffinity(0))
    assert report["host"]["arch"] == platform.machine()
    assert report["host"]["kernel"] == platform.release()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = _facts(report, "RAM")
    assert memory["total"] == total
    assert 0 < memory["available"] <= total
    nodes = _facts(report, "NUMA")["nodes"]
    assert len(nodes) == len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))


def test_kvm(report: dict[str, Any]) -> None:
    backend = _facts(report, "backend")
    flags = set(Path("/proc/cpuinfo").read_text().split()) & {"vmx", "svm"}
    modules = {entry.name for entry in Path("/sys/module").glob("kvm*")}
    assert set(_facts(report, "modules")["modules"]) <= modules
    if not Path("/dev/kvm").exists():
        assert backend["kind"] == "none"
    elif not flags and "kvm_pvm" in modules:
        assert (backend["kind"], backend["backend"]) == ("paravirtual", "kvm_pvm")
    assert report["can"]["kvm"] == (backend["kind"] == "hardware" and backend["usable"])
    if Path("/dev/kvm").exists() and backend["usable"]:
        argv = ["qemu-system-x86_64", "-accel", "kvm", "-M", "none", "-display", "none"]
        # A QEMU that cannot have KVM ends at once with 1; this one is ended by us.
        with subprocess.Popen([*argv, "-S"], stderr=subprocess.PIPE) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            ended = process.poll()
            process.kill()
        assert ended is None


def test_programs_and_devices(report: dict[str, Any]) -> None:
    for name in ("qemu-img", "qemu-nbd", "qemu-io", "swtpm", "passt"):
        path = shutil.which(name)
        assert _facts(report, name).get("path") == path
        if path and name != "passt":
            first = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            assert _facts(report, name)["version"] == first.splitlines()[0]
    for path in ("/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"):
        assert _facts(report, path)["exists"] == Path(path).exists()


def test_for_people() -> None:
    """Away from a terminal: one line for each finding, the cure below it, no colours."""
    done = command()
    # On a busy host the QEMUs may take more than a second to answer, which is told.
    assert (done.returncode, done.stderr.replace(_SLOW, "")) == (0, "")
    assert "\x1b" not in done.stdout
    signs = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert signs <= {"ok", "note", "warn", "cure:"}
    assert done.stdout.splitlines()[-1] == "ok: all that is required is here (run)"


def test_without_any_qemu(tmp_path: Path) -> None:
    done = command(PATH=str(tmp_path))
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "FAIL: required and lacking: run (starting machines)"


def test_as_nobody(tmp_path: Path) -> None:
    """An ordinary user who may open nothing gets findings and cures, and no traceback."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program = (
        "import os, sys\n"
        "from qmpkit.cli import app, doctor\n"  # read while we may: nobody may not see our files
        "import qmpkit.host.doctor, qmpkit.process.spawner, trio, rich.table\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(app.run(['doctor', '--json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "QMPKIT_CACHE_DIR": "/nowhere", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["host"]["user"] == "nobody"
    if not os.access("/dev/kvm", os.F_OK):
        pytest.skip("this host has no /dev/kvm")
    if Path("/dev/kvm").stat().st_mode & 0o006 == 0:
        device = next(f for f in report["findings"] if f["name"] == "/dev/kvm")
        assert device["verdict"] == "warn"
        assert device["found"].startswith("user 'nobody' may not open /dev/kvm")
        assert device["cure"].startswith("sudo ")


async def test_a_qemu_with_kvm_alone_is_asked_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's for microvm takes KVM by itself, which is not everybody's to open."""
    real = shutil.which("qemu-system-x86_64-microvm")
    if real is None or os.geteuid() != 0:
        pytest.skip("needs qemu-system-x86_64-microvm, and root, to become somebody else")
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    script = tmp_path / "qemu-system-x86_64-microvm"
    script.write_text(f'#!/bin/sh\nexec {nobody} {real} "$@"\n')
    script.chmod(0o755)
    report = await examine_host([], host=Host(search=(tmp_path,)))
    found = next(f for f in report.findings if f.name == "1 other")
    assert found.facts["binaries"][0]["accelerators"] == ["kvm"]


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.2])
async def test_cancelled_it_leaves_nothing(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(binary, "_remembered", {})
    async with leaks():
        with trio.move_on_after(delay):
            await examine_host()


async def test_broken_and_wedged_binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called a QEMU and is none: a script that hangs, one that ends, a text."""
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(qemus, "_ANSWER_WITHIN", 1.0)
    programs = {
        "x86_64": "#!/bin/sh\nexec sleep 1000\n",
        "aarch64": "#!/bin/sh\necho no room >&2; exit 1\n",
        "riscv64": "no program at all\n",
    }
    for name, text in programs.items():
        path = tmp_path / f"qemu-system-{name}"
        path.write_text(text)
        path.chmod(0o755)
    report = await examine_host(host=Host(search=(tmp_path,)))
    said = {found.name: found.found for found in report.findings if found.topic == "QEMU"}
    assert said["x86_64"].endswith("is broken: does not answer within 1 seconds")
    assert said["aarch64"].endswith("is broken: no room")
    assert "Exec format error" in said["riscv64"]
    assert not report.ok
