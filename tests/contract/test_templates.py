"""A template that is being saved or cloned, cancelled anywhere or failing, on a fake."""

from __future__ import annotations

import fcntl
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.machine.state import State
from qmpkit.templates.errors import TemplateFailed, TemplateInUse
from qmpkit.templates.manifest import MANIFEST
from qmpkit.templates.saved import CLONES
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake_machine import FakeHost
from qmpkit.testing.leaks import leaks
from tests.contract.migrating import booted, migrating, template_at
from tests.sizes import TEMPLATE_CANCELS

WHOLE = {"ram", "state", MANIFEST, CLONES}


@pytest.fixture
def host() -> FakeHost:
    """Its machines migrate at once."""
    return FakeHost(prepare=migrating)


@pytest.fixture
async def saved(host: FakeHost, tmp_path: Path) -> qmpkit.Template:
    return await template_at(host, tmp_path / "saved")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_save_at_every_checkpoint(host: FakeHost, tmp_path: Path) -> None:
    place = tmp_path / "web"

    async def life() -> None:
        async with booted(host, place) as vm:
            try:
                await vm.to_template(place, twins=True)
            except trio.Cancelled:
                # Nothing has happened, or it is whole and the machine has ended.
                assert (vm.state is State.GONE) == place.exists()
                raise

    def check() -> None:
        (tmp_path / "web.ram").unlink(missing_ok=True)
        if place.exists():
            assert _names(place) == WHOLE
            for file in (place / CLONES, place):
                for path in file.iterdir():
                    path.unlink() if path.is_file() else path.rmdir()
            place.rmdir()
        assert _names(tmp_path) == set()
        assert not host.alive

    async with leaks():
        await trio.to_thread.run_sync(lambda: None)  # trio keeps its thread: not a leak of ours
        cancelled = await cancel_at_every_checkpoint(life, every=TEMPLATE_CANCELS, after=check)
    assert cancelled > 7


async def test_a_save_that_qemu_fails_leaves_the_machine_running(
    host: FakeHost, tmp_path: Path
) -> None:
    host.prepare = partial(migrating, ends="failed")
    async with booted(host, tmp_path / "web") as vm:
        with pytest.raises(TemplateFailed, match="'bare': cannot save its state: failed"):
            await vm.to_template(tmp_path / "web", twins=True)
        assert vm.state is State.RUNNING
    assert _names(tmp_path) == {"web.ram"}  # the machine's own


async def test_a_place_that_is_taken_and_a_machine_that_stands_still_are_refused(
    host: FakeHost, tmp_path: Path
) -> None:
    async with booted(host, tmp_path / "web") as vm:
        (tmp_path / "taken").touch()
        with pytest.raises(ImageFailed, match="something already"):
            await vm.to_template(tmp_path / "taken", twins=True)
        await vm.pause()
        with pytest.raises(TemplateFailed, match=r"it is paused\. Cure: let its guest run"):
            await vm.to_template(tmp_path / "web", twins=True)
        with pytest.raises(SpecInvalid, match="without a guest agent no clone can become somebody"):
            await vm.to_template(tmp_path / "web")


async def test_a_clone_at_every_checkpoint(
    host: FakeHost, saved: qmpkit.Template, tmp_path: Path
) -> None:
    async def life() -> None:
        async with saved.clone("one", twin=True, start=host.start) as vm:
            assert vm.state is State.RUNNING

    def check() -> None:
        assert not host.alive
        assert _names(saved.path / CLONES) == set()

    async with leaks():
        await trio.to_thread.run_sync(lambda: None)
        cancelled = await cancel_at_every_checkpoint(life, every=TEMPLATE_CANCELS, after=check)
    assert cancelled > 4
    assert await saved.verify() == ()


async def test_a_clone_that_crashes_in_the_last_moment_is_told(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    with pytest.raises(qmpkit.MachineDied, match="SIGSEGV"):
        async with saved.clone("one", twin=True, start=host.start):
            host["one"].process.end(signal.SIGSEGV)
    with pytest.raises(qmpkit.MachineDied, match="SIGSEGV"):
        async with saved.clones(2, twin=True, start=host.start) as vms:
            host[vms[1].name].process.end(signal.SIGSEGV)


async def test_clones_come_together_and_go_together(host: FakeHost, saved: qmpkit.Template) -> None:
    async with leaks(), saved.clones(5, twin=True, start=host.start) as vms:
        assert len({vm.name for vm in vms}) == len({vm.spec.uuid for vm in vms}) == 5
        assert len(host.alive) == 5
    assert not host.alive


async def test_clones_of_which_one_dies_all_go(host: FakeHost, saved: qmpkit.Template) -> None:
    async with leaks():
        with pytest.raises(qmpkit.MachineDied):
            async with saved.clones(3, twin=True, start=host.start) as vms:
                host[vms[1].name].process.end(1)
                await trio.sleep_forever()
    assert not host.alive


async def test_a_template_is_not_removed_while_a_clone_runs(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    async with saved.clone(twin=True, start=host.start):
        with pytest.raises(TemplateInUse, match="clones of it run"):
            await saved.remove()
    await saved.remove()
    assert not saved.path.exists()


async def test_a_state_that_is_not_loaded_is_told(host: FakeHost, saved: qmpkit.Template) -> None:
    host.prepare = partial(migrating, ends="failed")
    with pytest.raises(TemplateFailed, match="cannot load the template's state: failed"):
        async with saved.clone(twin=True, start=host.start):
            pass
    assert not host.alive


async def test_what_is_asked_of_a_twin_is_refused(saved: qmpkit.Template) -> None:
    with pytest.raises(SpecInvalid, match="its clones can only be twins"):
        saved.clone()
    with pytest.raises(SpecInvalid, match="a twin has those of the template"):
        saved.clone(twin=True, ssh_host_keys=True)
    with pytest.raises(SpecInvalid, match="counts from 1, not from 0"):
        saved.clones(0, twin=True)


async def test_a_template_that_is_being_removed_is_not_cloned(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    lock = os.open(saved.path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TemplateInUse, match="it is being removed"):
            async with saved.clone(twin=True, start=host.start):
                pass
    finally:
        os.close(lock)
