"""What is in the way of a migration is found all at once, before anything is done."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from qmpkit import (
    DgramNic,
    Disk,
    Forward,
    MachineSpec,
    Memory,
    Share,
    State,
    StreamNic,
    TapNic,
    UsbHost,
    UserNic,
    Vfio,
    Vsock,
)
from qmpkit.operations.migration.compatibility import (
    cpu_faults,
    job_faults,
    missing_files,
    spec_faults,
    state_faults,
)
from qmpkit.operations.migration.incoming import start_form


def test_each_that_cannot_be_had_twice_is_named() -> None:
    spec = MachineSpec(
        disks=[Disk("a.qcow2", format="qcow2")],
        nics=[
            UserNic(forwards=["2222:22"]),
            TapNic(ifname="tap0"),
            TapNic(),
            StreamNic(address="unix:/a", server=True),
            StreamNic(address="unix:/b"),
            StreamNic(),
            DgramNic(local="unix:/c", remote="unix:/d"),
            DgramNic(remote="230.0.0.1:1234"),
        ],
        devices=[
            Share(tag="home", socket="/run/fs"),
            Vfio(host="0000:01:00.0"),
            UsbHost(hostbus=1, hostaddr=2),
            Vsock(cid=5),
        ],
        vsock=4,
        memory=Memory("1GiB", mem_path="/dev/shm/ram", share=True),
    )
    faults = list(spec_faults(spec))
    assert [fault.path for fault in faults] == [
        *(f"nics[{number}]" for number in (1, 3, 4, 6)),
        *(f"devices[{number}]" for number in range(4)),
        "vsock",
        "memory.mem_path",
    ]
    assert all(fault.message and fault.hint for fault in faults)
    assert "'nic1': QEMU has the device 'tap0' as long as it lives" in str(faults[0])
    others = [fault.path for fault in spec_faults(spec, cables=("nic1", "nic6"))]
    assert others[:2] == ["nics[3]", "nics[4]"] and "nics[6]" not in others


def test_a_plain_machine_has_nothing_in_its_way() -> None:
    spec = MachineSpec(nics=[UserNic()], memory=Memory("1GiB", mem_path="/x"), rng=True, agent=True)
    assert list(spec_faults(spec)) == []


@pytest.mark.parametrize("state", list(State))
def test_only_a_guest_that_runs_or_was_paused_moves(state: State) -> None:
    moves = state in (State.RUNNING, State.PAUSED)
    assert [fault.path for fault in state_faults(state)] == ([] if moves else ["state"])


def test_what_goes_on_in_qemu_is_named() -> None:
    jobs = [
        {"id": "qk-move", "type": "mirror", "status": "running"},
        {"id": "old", "type": "backup", "status": "concluded"},
    ]
    exports = [{"node-name": "qk-fleece", "id": "x"}]
    told = {"blocked-reasons": ["VFIO device doesn't support migration"]}
    faults = list(job_faults(jobs, exports, told))
    assert [str(fault) for fault in faults] == [
        "jobs: a mirror (qk-move) is under way (wait for its end, or cancel it)",
        "exports: qk-fleece is served (end that backup first)",
        "QEMU says: VFIO device doesn't support migration",
    ]
    assert list(job_faults([], [], {"status": "completed"})) == []


def word(leaf: int, register: str, features: int, index: int | None = None) -> dict[str, object]:
    found = {"cpuid-input-eax": leaf, "cpuid-register": register, "features": features}
    return found if index is None else {**found, "cpuid-input-ecx": index}


def test_processors_are_compared_by_what_they_show() -> None:
    here = [word(1, "EDX", 7), word(7, "EBX", 1, 0), word(7, "EBX", 1, 1)]
    assert list(cpu_faults(here, [*reversed(here), word(0x80000001, "ECX", 0)])) == []
    there = [word(1, "EDX", 7), word(7, "EBX", 3, 0), word(0x80000001, "ECX", 1)]
    (fault,) = cpu_faults(here, there)
    assert "CPUID[0x7,0x0].EBX, CPUID[0x7,0x1].EBX, CPUID[0x80000001].ECX differ" in fault.message


def test_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    disks = [Disk(str(tmp_path / name), format="raw") for name in ("a", "b")]
    spec = MachineSpec(disks=disks)
    assert [fault.path for fault in missing_files(spec)] == ["disks[1].file"]


def test_a_destination_is_started_without_what_the_source_has() -> None:
    cabled = StreamNic(id="nic1")
    memory = Memory("1GiB", mem_path="/template/ram")
    user = UserNic(id="nic0", forwards=[Forward(2222, 22)])
    spec = MachineSpec(nics=[user, cabled], memory=memory, vmgenid="auto", resume_from="/ram")
    form = start_form(spec, generation="12345678-1234-1234-1234-123456789abc")
    assert form == attrs.evolve(
        spec,
        nics=[UserNic(id="nic0"), cabled],
        memory=Memory("1GiB"),
        vmgenid="12345678-1234-1234-1234-123456789abc",
        resume_from=None,
    )
    huge = Memory("1GiB", mem_path="/dev/hugepages", huge_pages="2MiB")
    kept = start_form(MachineSpec(memory=huge), generation=None)
    assert kept.memory == huge and kept.vmgenid is None
