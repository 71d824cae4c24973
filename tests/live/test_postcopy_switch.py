"""The connection is cut as a guest switches to postcopy: it is here, or there, or told as lost."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    CannotMigrate,
    JobFailed,
    MachineDied,
    MigrationFailed,
    MigrationLost,
    State,
    postcopy,
)
from qmpkit.machine.saved_state import MAIMED
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.migrating import At, counting, lives_on
from tests.live.relay import BY_RELAY, LARGE, Relay
from tests.sizes import LONG, POSTCOPY_SWITCHES, QEMU_VERSIONS

pytestmark = pytest.mark.live

AT = ("pre-switchover", "STOP", "postcopy-active") if LONG else ("STOP",)
OPTIONS = attrs.evolve(BY_RELAY, recover_within=5)


@pytest.mark.bound(60 + 15 * POSTCOPY_SWITCHES)
@pytest.mark.parametrize("word", AT)
async def test_it_is_cut_as_it_switches(
    qemu: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _cut_again_and_again(word, qemu, tmp_path, monkeypatch)


@pytest.mark.bound(60 + 15 * POSTCOPY_SWITCHES)
@pytest.mark.qemus(QEMU_VERSIONS[-1])
async def test_it_is_cut_as_it_sends_its_devices(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rule QEMU 10.0 does not notice that it has failed: see `unstuck`."""
    await _cut_again_and_again("device", qemu, tmp_path, monkeypatch)


async def _cut_again_and_again(
    word: str, qemu: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(POSTCOPY_SWITCHES):
        with monkeypatch.context() as patch:
            relay, at = Relay(patch), At(word, "received")
            async with leaks():
                await _moved(qemu, folder, at, relay)
            assert at.has_come


async def _moved(qemu: str, folder: Path, at: At, relay: Relay) -> None:
    spec, lost, begun = counting(qemu, folder, memory=LARGE), False, math.inf
    try:
        async with qmpkit.running(spec, options=at.options) as vm:
            await vm.console.expect(".")
            had = await counted(vm)
            async with qmpkit.receiving(vm) as destination:
                at.act = relay.cut
                try:
                    with trio.fail_after(20):
                        await vm.migrate(destination, policy=postcopy(after=0), options=OPTIONS)
                except MigrationFailed as failed:
                    await lives_on(vm, had)
                    await _is_maimed_or_whole(vm, failed, folder)
                    begun = trio.current_time()
                except MigrationLost:
                    lost = True
                    raise
                else:
                    await lives_on(destination.vm, had)
    except (MigrationLost, MachineDied):
        assert lost
    assert trio.current_time() - begun < 5  # no step of its end was waited for in vain


async def _is_maimed_or_whole(vm: qmpkit.VM, failed: MigrationFailed, folder: Path) -> None:
    """What it cannot do any more is told of, and refused; else it can."""
    faults = await vm.migration_faults()
    if not vm.machine.maimed:
        assert faults == ()
        return
    assert [fault.message for fault in faults] == [MAIMED] and MAIMED in str(failed)
    with pytest.raises(CannotMigrate):
        async with qmpkit.receiving(vm):
            pytest.fail("it waits for a guest that cannot come")
    with pytest.raises(JobFailed, match="has not got over"):
        await vm.save(folder / "saved")
    assert vm.state is State.RUNNING and not (folder / "saved").exists()
