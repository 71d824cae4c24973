"""The same tests on a fake and on every real QEMU there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import pytest

from qmpkit.host.capabilities import Capabilities
from qmpkit.host.kvm import KvmFacts
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.launch import LaunchOptions, launched, start_qemu
from qmpkit.machine.machine import Machine
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from tests.conftest import binaries
from tests.contract.firmware import firmware

FAKE = "fake"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `where` runs on the fake and on each QEMU version."""
    if "where" in metafunc.fixturenames:
        real = [pytest.param(version, marks=pytest.mark.live) for version in binaries()]
        metafunc.parametrize("where", [FAKE, *real], ids=lambda where: where)


def faked(spec: MachineSpec) -> Resolution:
    """What `resolve` would say on a host that has everything."""
    able = Capabilities(
        version=(7, 2, 0),
        package="fake",
        arch="x86_64",
        accelerators=("kvm", "tcg"),
        machines=(),
        cpu_models=(),
        commands=frozenset(),
        run_with_user=False,
    )
    facts = Facts(binary="/usr/bin/qemu-system-x86_64", accel="tcg")
    return Resolution(spec, facts, (), able, KvmFacts("none", usable=False, why="it is a fake"))


def _guest(does: str) -> Callable[[FakeMachine], None]:
    """Makes a fake whose guest does what the firmware of that name does."""

    def prepare(machine: FakeMachine) -> None:
        qemu = machine.qemu

        def cont(arguments: dict[str, object]) -> object:
            match does:
                case "powers off":
                    qemu.after_reply(qemu.guest_shutdown)
                case "reboots":
                    qemu.after_reply(qemu.guest_reset)
                case "panics":
                    qemu.after_reply(lambda: _panic(machine))
            return qemu.run("cont", {}, [])

        qemu.on("cont", cont)

    return prepare


def _panic(machine: FakeMachine) -> None:
    machine.qemu.emit("GUEST_PANICKED", {"action": "poweroff"})
    machine.qemu.emit("STOP")
    machine.qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-panic"})
    machine.process.end(0)


class Launch(Protocol):
    """Starts a machine without a guest, or with one of `firmware`'s."""

    def __call__(
        self, guest: str = "", *, no_reboot: bool = False, options: LaunchOptions | None = None
    ) -> AbstractAsyncContextManager[Machine]: ...


@pytest.fixture
def host() -> FakeHost:
    """Where the fakes of a test are started; its handles say what the fakes do."""
    return FakeHost()


@pytest.fixture
def launch(
    where: str,
    host: FakeHost,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> Launch:
    """`async with launch() as machine`, on whatever this run is about."""
    if where != FAKE:
        record_property("qemu", f"QEMU {where}")

    @asynccontextmanager
    async def run(
        guest: str = "", *, no_reboot: bool = False, options: LaunchOptions | None = None
    ) -> AsyncIterator[Machine]:
        spec = MachineSpec(name="bare", accel="tcg", memory="16MiB", no_reboot=no_reboot)
        if where == FAKE:
            host.prepare = _guest(guest)
            async with launched(faked(spec), options, start=host.start) as machine:
                yield machine
            return
        if guest:
            image = tmp_path / "firmware.bin"
            image.write_bytes(firmware(guest))
            spec = attrs.evolve(spec, firmware=image)
        resolution = await resolve(attrs.evolve(spec, qemu=binaries()[where]))
        async with launched(resolution, options, start=start_qemu) as machine:
            yield machine

    return run
