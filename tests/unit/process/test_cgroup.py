"""Control groups on a made-up tree: where they are made, what is written, what is swept."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.machine.grouping import grouped, io_lines, limit
from qmpkit.process import cgroup
from qmpkit.process.cgroup import Group, Pressure, base_of, group_of, made_group, sweep
from qmpkit.process.child import child
from qmpkit.process.errors import SpawnFailed
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.resources import IoMax, Resources

ALL = "cpuset cpu io memory hugetlb pids"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def directory(path: Path, controllers: str = ALL, down: str = ALL) -> Path:
    """A control group."""
    write(path / "cgroup.procs")
    write(path / "cgroup.controllers", controllers + "\n")
    write(path / "cgroup.subtree_control", down + "\n")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host on which the group /lab is ours to divide, and we are in one below it."""
    mounts = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    write(tmp_path / "proc/self/mountinfo", mounts)
    write(tmp_path / "proc/self/cgroup", "0::/lab/main\n")
    mount = tmp_path / "sys/fs/cgroup"
    for path in (mount, mount / "lab", mount / "lab/main"):
        directory(path)
    monkeypatch.setenv("QMPKIT_CGROUP", "/lab")
    return tmp_path


@pytest.fixture
def lab(root: Path) -> Path:
    return root / "sys/fs/cgroup/lab"


def own_place() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")


def groups(base: Path) -> list[str]:
    return sorted(path.name for path in base.glob("qmpkit-*"))


def test_a_group_is_there_for_as_long_as_it_is_used(root: Path, lab: Path) -> None:
    with made_group("web", ["cpu"], {"cpu.max": "50000 100000"}, root) as group:
        assert group.path.parent == lab
        assert group.read("cpu.max") == "50000 100000"
        assert groups(lab) == [group.path.name]
        assert sweep(lab) == []  # somebody is about to use it
    assert groups(lab) == []


def test_a_process_in_it_keeps_it_and_its_end_frees_it(root: Path, lab: Path) -> None:
    with made_group("web", ["cpu"], {}, root) as group:
        write(group.path / "cgroup.procs", "1234\n")
    assert groups(lab) == [group.path.name]
    assert sweep(lab) == []
    write(group.path / "cgroup.procs")
    with made_group("db", ["cpu"], {}, root) as other:
        assert groups(lab) == [other.path.name]


def test_a_sigkill_of_ours_leaves_what_the_next_one_sweeps(root: Path, lab: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from qmpkit.process.cgroup import made_group\n"
        "with made_group('web', ['cpu'], {}, Path(sys.argv[1])):\n"
        "    print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(groups(lab)) == 1
        assert sweep(lab) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(sweep(lab)) == 1
    assert groups(lab) == []


def test_two_machines_of_one_name_have_two_groups(root: Path) -> None:
    with made_group("web", [], {}, root) as one, made_group("web", [], {}, root) as other:
        assert one.path != other.path


def test_controllers_are_handed_down_only_when_they_are_not(root: Path, lab: Path) -> None:
    write(lab / "cgroup.subtree_control", "memory\n")
    with made_group("web", ["cpu", "memory"], {}, root):
        assert (lab / "cgroup.subtree_control").read_text() == "+cpu"


def test_a_controller_that_is_missing_is_told(root: Path, lab: Path) -> None:
    write(lab / "cgroup.controllers", "hugetlb\n")
    lacks = pytest.raises(HostLacks, match=r"lab lacks the controller cpu, memory\. .*Delegate")
    with lacks, made_group("web", ["cpu", "memory"], {}, root):
        pass
    assert groups(lab) == []


def test_a_limit_that_the_kernel_refuses_leaves_no_group(root: Path, lab: Path) -> None:
    refused = pytest.raises(HostLacks, match=r"cannot write '1' to .*web.*/no/such: No such file")
    with refused, made_group("web", [], {"no/such": "1"}, root):
        pass
    assert groups(lab) == []


def test_no_version_2(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/mountinfo", "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")
    with pytest.raises(HostLacks, match="cgroup v2 is not mounted"):
        base_of(tmp_path)


def test_what_is_named_has_to_be_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_CGROUP", "/other")
    with pytest.raises(HostLacks, match=r"/other of \$QMPKIT_CGROUP is not there"):
        base_of(root)


def test_our_own_group_that_was_delegated(
    root: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QMPKIT_CGROUP")
    monkeypatch.setattr(cgroup, "_delegated", lambda group: group == lab / "main")
    assert base_of(root).path == lab / "main"
    write(root / "proc/self/cgroup", "0::/lab/main/qmpkit-main\n")  # we have moved there
    directory(lab / "main/qmpkit-main")
    assert base_of(root).path == lab / "main"


def test_else_the_topmost_that_we_may_write_to(
    root: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QMPKIT_CGROUP")
    monkeypatch.setattr(cgroup, "_delegated", lambda group: False)
    own = base_of(root)
    assert (own.path, own.make) == (root / "sys/fs/cgroup/qmpkit.slice", True)
    monkeypatch.setattr(cgroup, "_divisible", lambda group: lab in (group, *group.parents))
    assert base_of(root).path == lab / "qmpkit.slice"
    monkeypatch.setattr(cgroup, "_divisible", lambda group: False)
    with pytest.raises(HostLacks, match=r"no control group was handed to us.*systemd-run --user"):
        base_of(root)


def test_what_is_divided_has_no_processes_of_its_own(
    root: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's rule, which a plain file does not have."""
    write(lab / "cgroup.procs", "11\n12\n")
    write(lab / "cgroup.subtree_control")
    wrote: list[str] = []
    plain = Path.write_text

    def kernel(path: Path, text: str) -> int:
        if path == lab / "cgroup.subtree_control" and (lab / "cgroup.procs").read_text():
            raise OSError(16, "Device or resource busy")
        if path.parent == lab / "qmpkit-main":
            wrote.append(text)
            if len(wrote) == 2:
                plain(lab / "cgroup.procs", "")
            return len(text)
        return plain(path, text)

    monkeypatch.setattr(Path, "write_text", kernel)
    with made_group("web", ["cpu"], {}, root):
        assert wrote == ["11", "12"]
        assert (lab / "cgroup.subtree_control").read_text() == "+cpu"


async def test_a_child_is_born_in_its_group(root: Path, lab: Path) -> None:
    """The spawner goes into the group, and comes back to where this process is."""
    mount = root / "sys/fs/cgroup"
    procs = directory(mount / own_place()) / "cgroup.procs"
    with made_group("web", [], {}, root) as group:
        write(group.path / "cgroup.procs", "-")
        async with child(["sleep", "60"], group=group) as process:
            assert process.status is None
            assert (group.path / "cgroup.procs").read_text().startswith("0\n")
            assert procs.read_text() == "0\n"
        write(group.path / "cgroup.procs")


async def test_a_group_that_is_gone_starts_nothing(lab: Path) -> None:
    gone = Group(lab / "gone", lab.parent)
    with pytest.raises(SpawnFailed, match=r"cannot put it into the control group .*gone"):
        async with child(["sleep", "60"], group=gone):
            pass


async def test_a_machine_without_limits_has_none(root: Path, lab: Path) -> None:
    async with grouped(MachineSpec(resources=Resources(nice=3))) as group:
        assert group is None
    assert groups(lab) == []


async def test_the_group_of_a_machine(
    root: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "base_of", lambda _: base_of(root))
    spec = MachineSpec(name="a b/".rstrip("/"), resources=Resources(cpu_max=0.5, pids_max=20))
    async with grouped(spec) as group:
        assert group is not None
        assert group.path.name.startswith("qmpkit-a_b-")
        assert group.read("cpu.max") == "50000 100000"
        assert group.read("pids.max") == "20"
        limit(group, Resources(cpu_weight=50), ("cpu", "pids"))
        assert group.read("cpu.max") == "max 100000"
        assert group.read("cpu.weight") == "50"
        assert group.read("pids.max") == "max"
    assert groups(lab) == []


def test_io_limits_are_a_line_for_each_device() -> None:
    assert io_lines((IoMax(device="8:0", rbps=5, wiops=7),)) == [
        "8:0 rbps=5 wbps=max riops=max wiops=7"
    ]
    with pytest.raises(HostLacks, match="/dev/null is no block device"):
        io_lines((IoMax(device="/dev/null", rbps=5),))
    with pytest.raises(HostLacks, match="/dev/nonesuch cannot be looked at"):
        io_lines((IoMax(device="/dev/nonesuch", rbps=5),))


def test_devices_that_are_no_longer_named_are_freed(lab: Path) -> None:
    group = Group(lab, lab.parent)
    wrote: list[str] = []
    write(lab / "io.max", "8:0 rbps=5 wbps=max riops=max wiops=max\n")
    group_write = Group.write

    def note(self: Group, files: dict[str, str]) -> None:
        wrote.extend(files.values())
        group_write(self, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "write", note)
        limit(group, Resources(io_max=[IoMax(device="8:16", wbps=9)]), ("io",))
    assert wrote == [
        "8:0 rbps=max wbps=max riops=max wiops=max",
        "8:16 rbps=max wbps=9 riops=max wiops=max",
    ]


def test_pressure_is_read_back() -> None:
    text = (
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\n"
        "full avg10=0.10 avg60=0.00 avg300=0.00 total=99\n"
    )
    assert Pressure.parsed(text) == Pressure((1.5, 0.25, 0.0), (0.1, 0.0, 0.0), 12345)
    assert Pressure.parsed("") == Pressure()


def test_the_group_of_a_process(root: Path, lab: Path) -> None:
    write(root / "proc/77/cgroup", "1:name=systemd:/\n0::/lab/qmpkit-web-5.0\n")
    write(root / "proc/78/cgroup", "0::/lab/qmpkit-main\n")
    found = group_of(77, root)
    assert found is not None and found.path == lab / "qmpkit-web-5.0"
    assert group_of(78, root) is None
    assert group_of(79, root) is None


def test_a_group_whose_lock_is_held_is_left(lab: Path) -> None:
    path = directory(lab / "qmpkit-x-1.0")
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert sweep(lab) == []
    os.close(fd)
    assert sweep(lab) == [path]


def real_mount() -> Path | None:
    """This host's own, if root may make groups in it."""
    mount = cgroup.mount_of()
    return mount if mount is not None and os.geteuid() == 0 and os.access(mount, os.W_OK) else None


@pytest.mark.skipif(real_mount() is None, reason="cgroup v2 is not mounted here, or not for us")
async def test_the_kernels_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any controller: birth, lock, sweep and removal are the kernel's all the same."""
    mount = real_mount()
    assert mount is not None
    base = mount / "qmpkit-test.slice"
    base.mkdir(exist_ok=True)
    monkeypatch.setenv("QMPKIT_CGROUP", base.name)
    try:
        before = own_place()
        with made_group("web", [], {}) as group:
            async with child(["sleep", "60"], group=group) as process:
                found = group_of(process.pid)
                assert found == group
                assert group.read("cgroup.procs") == str(process.pid)
                assert own_place() == before
            assert group.read("cgroup.procs") == ""
            assert sweep(base) == []
        assert groups(base) == []
        (base / "qmpkit-left-1.0").mkdir()
        assert [path.name for path in sweep(base)] == ["qmpkit-left-1.0"]
    finally:
        base.rmdir()
