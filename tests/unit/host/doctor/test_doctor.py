"""The doctor where hosts are odd: files that cannot be read, programs that hang, needs misspelt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import pytest
import trio

from qmpkit.errors import HostLacks
from qmpkit.host.capabilities import Capabilities, Stamp
from qmpkit.host.doctor import Finding, Host, HostReport, examine_host, place, qemus
from qmpkit.host.doctor.place import first_line_of_version
from qmpkit.host.doctor.words import count_of_list, listing, plural, size
from qmpkit.host.kvm import User
from qmpkit.process.limits import Limits
from tests.unit.host.doctor.recorded import recorded


def named(report: HostReport, name: str) -> Finding:
    return next(found for found in report.findings if found.name == name)


def answering(host: Host, **changes: object) -> Host:
    """The same host, on which each QEMU answers something else."""

    async def ask(stamp: Stamp) -> Capabilities:
        return attrs.evolve(await host.ask(stamp), **changes)  # type: ignore[arg-type]

    return attrs.evolve(host, ask=ask)


async def test_an_empty_root(tmp_path: Path) -> None:
    """Nothing at all can be read, as in the barest container: findings, no traceback."""
    anna = User("anna", 1000, in_kvm_group=False)
    host = Host(root=tmp_path, arch="x86_64", user=anna, search=(tmp_path / "none",))
    report = await examine_host([], host=host)
    assert named(report, "RAM").found == "/proc/meminfo tells nothing"
    assert named(report, "cgroups").found == "not mounted, or hidden from us"
    assert named(report, "seccomp").lacks == ("run",)
    assert not report.can("run")
    assert set(report.host.values()) == {"", "x86_64", "anna"}


async def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    host = recorded("intel", tmp_path)
    for path in ("proc/meminfo", "etc/os-release", "sys/kernel/mm/hugepages"):
        target = tmp_path / path
        target.rename(tmp_path / target.name)
        target.symlink_to(target)  # a loop: not even root can open it
    report = await examine_host(host=host)
    assert report.ok
    assert report.host["os"] == ""
    assert named(report, "huge pages").found.startswith("not in this kernel")


async def test_a_wedged_qemu_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemus, "_ANSWER_WITHIN", 1.5)
    host = recorded("kvm_pvm", tmp_path)

    async def ask(stamp: Stamp) -> Capabilities:
        if stamp.path.endswith("aarch64"):
            await trio.sleep_forever()
        return await host.ask(stamp)

    report = await examine_host(host=attrs.evolve(host, ask=ask))
    found = named(report, "aarch64")
    assert found.verdict == "warn"
    assert found.found == (
        "/usr/bin/qemu-system-aarch64 is broken: does not answer within 1.5 seconds"
    )
    assert found.cure == "apt install --reinstall qemu-system-arm"
    assert report.ok


async def test_a_few_are_asked_at_a_time(tmp_path: Path) -> None:
    host = recorded("kvm_pvm", tmp_path)
    for number in range(20):
        (tmp_path / f"usr/bin/qemu-system-x{number}").symlink_to("qemu-system-avr")
    asked = most = 0
    four = trio.Event()

    async def ask(stamp: Stamp) -> Capabilities:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        if asked == 4:
            four.set()
        await four.wait()
        asked -= 1
        return await host.ask(attrs.evolve(stamp, path="qemu-system-avr"))

    report = await examine_host(host=attrs.evolve(host, ask=ask))
    assert most == 4
    assert len(named(report, "22 others").facts["binaries"]) == 22


async def test_a_broken_qemu_of_our_own_architecture(tmp_path: Path) -> None:
    host = recorded("container", tmp_path)

    async def ask(stamp: Stamp) -> Capabilities:
        raise OSError(8, "Exec format error")

    report = await examine_host(host=attrs.evolve(host, ask=ask))
    found = named(report, "x86_64")
    assert found.verdict == "fail"
    assert "is broken: [Errno 8] Exec format error" in found.found
    assert not report.ok


async def test_a_qemu_that_we_cannot_start_is_not_broken(tmp_path: Path) -> None:
    async def ask(stamp: Stamp) -> Capabilities:
        raise HostLacks("cannot start the spawner: no")

    host = attrs.evolve(recorded("container", tmp_path), ask=ask)
    found = named(await examine_host(host=host), "x86_64")
    assert found.verdict == "fail"
    assert found.found == "/usr/bin/qemu-system-x86_64 is not asked: cannot start the spawner: no"
    assert found.cure == ""


async def test_a_qemu_without_seccomp_runs_only_what_says_so(tmp_path: Path) -> None:
    report = await examine_host(host=answering(recorded("container", tmp_path), sandbox=False))
    found = named(report, "x86_64")
    assert "built without -sandbox" in found.found
    assert found.enough_for == "x86_64 guests with sandbox = false"
    assert not report.ok, "a machine has a sandbox unless it says otherwise"


async def test_a_qemu_without_kvm(tmp_path: Path) -> None:
    report = await examine_host(host=answering(recorded("intel", tmp_path), accelerators=("tcg",)))
    found = named(report, 'accel = "auto"')
    assert found.found.endswith("this QEMU was built without KVM")
    assert found.cure == "sudo apt install qemu-system-x86"
    assert report.can("run") and not report.can("kvm")


async def test_a_qemu_without_tcg_where_kvm_is_denied(tmp_path: Path) -> None:
    host = answering(recorded("amd_denied", tmp_path), accelerators=("kvm",))
    report = await examine_host(host=host)
    found = named(report, 'accel = "auto"')
    assert found.verdict == "fail"
    assert "built without TCG" in found.found
    assert not report.can("run")


async def test_another_qemu_is_enough_to_run(tmp_path: Path) -> None:
    host = recorded("arm", tmp_path)
    (tmp_path / "usr/bin/qemu-system-aarch64").unlink()
    report = await examine_host(host=host)
    assert report.ok
    assert named(report, "aarch64").verdict == "warn"
    assert not report.can("kvm")


@pytest.mark.parametrize(
    ("listing", "state"),
    [
        ({}, "unknown"),
        ({"modules.builtin": "kernel/a/vhost_net.ko\n"}, "loaded"),
        ({"modules.builtin": "x\n", "modules.dep": "kernel/a/vhost-net.ko.zst: b\n"}, "available"),
        ({"modules.builtin": "x\n", "modules.dep": "kernel/a/other.ko:\n"}, "absent"),
    ],
)
def test_modules(tmp_path: Path, listing: dict[str, str], state: str) -> None:
    for name, text in listing.items():
        (tmp_path / "lib/modules/6.1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib/modules/6.1" / name).write_text(text)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1\n")
    assert Host(root=tmp_path).module("vhost_net") == state


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


async def test_versions_of_odd_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = script(tmp_path / "good", f"#!{sys.executable}\nprint('good 1.2')\nprint('more')\n")
    mute = script(tmp_path / "mute", "#!/bin/true\n")
    bad = script(tmp_path / "bad", "#!/bin/false\n")
    lost = script(tmp_path / "lost", "#!/nowhere/interpreter\n")
    assert await first_line_of_version(good) == "good 1.2"
    assert await first_line_of_version(mute) == ""
    assert await first_line_of_version(bad) is None
    assert await first_line_of_version(lost) is None
    monkeypatch.setattr(place, "_VERSION_LIMITS", Limits(time=0.2))
    hangs = script(tmp_path / "hangs", f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    with trio.fail_after(5):
        assert await first_line_of_version(hangs) is None


def test_words() -> None:
    assert [plural(1, "node"), plural(2, "node")] == ["1 node", "2 nodes"]
    sizes = [100, 2048, 512 << 20, (1 << 30) * 3 // 2, 450 << 30]
    assert [size(each) for each in sizes] == ["100 B", "2 KiB", "512 MiB", "1.5 GiB", "450 GiB"]
    assert [count_of_list(text) for text in ("0-3,8", "5", "", "all")] == [5, 1, 0, 0]
    assert listing(list("abc"), most=2) == "a, b and 1 more"
    assert listing(list("ab"), most=2) == "a, b"


@pytest.mark.parametrize(
    "odd",
    [
        '{"targets": ["x86_64"]}',
        '{"targets": null}',
        '{"mapping": {"nvram-template": null}}',
        '{"mapping": null}',
        '{"interface-types": "uefi"}',
        "[]",
        "",
    ],
)
async def test_an_odd_firmware_descriptor_is_passed_over(odd: str, tmp_path: Path) -> None:
    """It is no reason to fail, nor to say that a host has no UEFI which has one."""
    host = recorded("intel", tmp_path)
    folder = tmp_path / "usr/share/qemu/firmware"
    good = json.loads((folder / "60-edk2-x86_64.json").read_text())
    told = json.loads(odd) if odd else None
    if isinstance(told, dict):
        if mapping := told.get("mapping"):
            told["mapping"] = {**good["mapping"], **mapping}
        told = {**good, **told}
    (folder / "10-odd.json").write_text("" if told is None else json.dumps(told))
    report = await examine_host(["uefi"], host=host)
    assert report.ok
    assert named(report, "UEFI x86_64").found == "/usr/share/OVMF/OVMF_CODE_4M.fd"


async def test_nested_without_kvm_is_of_no_use(tmp_path: Path) -> None:
    report = await examine_host(host=recorded("amd_denied", tmp_path))
    assert not report.can("nested")
