"""The hotplug engine against a QEMU that answers late, refuses, or whose guest says no."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from qmpkit.errors import GuestRefused
from qmpkit.operations.hotplug.errors import PlugFailed, UnplugPending, UnplugRefused
from qmpkit.operations.hotplug.plug import plugging
from qmpkit.operations.hotplug.unplug import release
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.spec.parts import Part
from qmpkit.testing.fake import FakeQemu, Late, Refuse, fake_qemu

PARTS = [
    Part("object", "o", {"qom-type": "iothread", "id": "o"}),
    Part("node", "n", {"driver": "null-co", "node-name": "n"}),
    Part("device", "d", {"driver": "virtio-blk-pci", "id": "d", "drive": "n"}),
]


class Guest:
    """The devices that a fake QEMU has, and whether its guest lets go of them."""

    def __init__(self, fake: FakeQemu) -> None:
        self.fake = fake
        self.devices: set[str] = set()
        self.says: Callable[[str], None] = self.lets_go
        self.bus = "PCIE"
        fake.status = "running"
        fake.on("qom-list", self._list)
        fake.on("qom-get", lambda it: "/bus" if it["property"] == "parent_bus" else self.bus)
        fake.on("device_add", lambda it: self.devices.add(it["id"]))
        fake.on("device_del", self._del)

    def lets_go(self, device: str) -> None:
        self.devices.discard(device)
        path = f"/machine/peripheral/{device}"
        self.fake.emit("DEVICE_DELETED", {"path": f"{path}/virtio-backend"})
        self.fake.emit("DEVICE_DELETED", {"path": path, "device": device})

    def _list(self, _: object) -> list[dict[str, str]]:
        return [{"name": name, "type": "child<x>"} for name in self.devices]

    def _del(self, arguments: dict[str, Any]) -> object:
        if arguments["id"] not in self.devices:
            raise Refuse("Device not found", "DeviceNotFound")
        self.fake.after_reply(lambda: self.says(arguments["id"]))
        return {}

    @property
    def told(self) -> list[str]:
        """What it was told to do, without the questions."""
        asked = ("qmp_capabilities", "qom-list", "qom-get", "query-status")
        return [it.command for it in self.fake.calls if it.command not in asked]


@pytest.fixture
async def fake() -> AsyncIterator[FakeQemu]:
    async with fake_qemu() as it:
        yield it


@pytest.fixture
async def qmp(fake: FakeQemu) -> AsyncIterator[Session]:
    async with open_session(fake.dial(), name="vm") as session:
        yield session


@pytest.fixture
def guest(fake: FakeQemu) -> Guest:
    return Guest(fake)


async def test_what_was_added_goes_in_the_reverse_order(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with plugging(qmp) as plugged:
            await plugged.add(*PARTS)
            _ = 1 / 0
    added, removed = guest.told[:3], guest.told[3:]
    assert added == ["object-add", "blockdev-add", "device_add"]
    assert removed == ["device_del", "blockdev-del", "object-del"]
    assert not guest.devices


@pytest.mark.parametrize("command", ["object-add", "blockdev-add", "device_add"])
async def test_a_command_without_an_answer_is_taken_back_too(
    qmp: Session, guest: Guest, command: str, autojump_clock: MockClock
) -> None:
    guest.fake.misbehave(command, Late(20))
    with trio.move_on_after(10) as scope:
        async with plugging(qmp) as plugged:
            await plugged.add(*PARTS)
    assert scope.cancelled_caught
    done = guest.told.index(command) + 1
    assert len(guest.told) == 2 * done
    assert not guest.devices


async def test_a_refused_device_leaves_nothing_behind(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    def refuse(_: object) -> None:
        raise Refuse("Bus 'pcie.0' does not support hotplugging")

    guest.fake.on("device_add", refuse)
    with pytest.raises(CommandRefused, match="does not support"):
        async with plugging(qmp) as plugged:
            await plugged.add(*PARTS)
    assert guest.told[3:] == ["blockdev-del", "object-del"], "a stranger may have its name"


async def test_one_that_the_guest_keeps_stays_with_what_is_behind_it(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.says = lambda device: None
    stuck: list[str] = []

    async def stays() -> None:
        stuck.append("it")

    with pytest.raises(ZeroDivisionError) as caught:
        async with plugging(qmp, stuck=stays) as plugged:
            await plugged.add(*PARTS)
            _ = 1 / 0
    assert stuck == ["it"]
    assert caught.value.__notes__ == ["the guest does not let go of 'd': it stays plugged"]
    assert "blockdev-del" not in guest.told


async def test_a_device_that_was_accepted_and_is_not_there(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.fake.on("device_add", {})
    with pytest.raises(PlugFailed, match="accepted the device 'd' of machine 'vm'"):
        async with plugging(qmp) as plugged:
            await plugged.add(*PARTS)
            await plugged.confirm()


def _refuses(name: str, data: dict[str, Any]) -> Callable[[Guest], object]:
    return lambda guest: guest.fake.emit(name, data)


PATH = "/machine/peripheral/d"


@pytest.mark.parametrize(
    ("event", "data", "why"),
    [
        ("DEVICE_UNPLUG_GUEST_ERROR", {"device": "d", "path": PATH}, "did not say why"),
        ("DEVICE_UNPLUG_GUEST_ERROR", {"path": PATH}, "did not say why"),
        ("MEM_UNPLUG_ERROR", {"device": "d", "msg": "busy"}, "busy"),
        ("ACPI_DEVICE_OST", {"info": {"device": "d", "source": 3, "status": 130}}, "status 0x82"),
    ],
)
async def test_the_guest_says_no(
    qmp: Session,
    guest: Guest,
    event: str,
    autojump_clock: MockClock,
    data: dict[str, Any],
    why: str,
) -> None:
    guest.devices.add("d")
    begun = {"info": {"device": "d", "source": 3, "status": 132, "slot": "0"}}

    def says(_: str) -> None:
        guest.fake.emit("ACPI_DEVICE_OST", begun)  # it has begun, which is no answer
        guest.fake.emit(event, data)

    guest.says = says
    with pytest.raises(UnplugRefused, match=f"'vm' refused to let go of 'd': .*{why}"):
        await release(qmp, "d")
    guest.says = guest.lets_go
    await release(qmp, "d")  # it can be asked again


async def test_the_guest_says_nothing_and_is_asked_again(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.devices.add("d")
    answers = iter([None, None, guest.lets_go])

    def says(device: str) -> None:
        answer = next(answers)
        if answer is not None:
            answer(device)

    guest.says = says
    with pytest.raises(UnplugPending, match="did not answer within 3 s"):
        await release(qmp, "d", grace=3)
    await release(qmp, "d", grace=30)
    assert guest.told == ["device_del"] * 3


async def test_one_that_is_being_unplugged_already(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.devices.add("d")

    def refuse(_: object) -> None:
        raise Refuse("Device d is already in the process of unplug")

    guest.fake.on("device_del", refuse)
    with pytest.raises(UnplugPending, match=r"\(QEMU said: Device d is already"):
        await release(qmp, "d", grace=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(release, qmp, "d")
        await trio.sleep(1)
        guest.lets_go("d")


async def test_a_guest_that_stands_still_is_not_asked(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.devices.add("d")
    guest.fake.status = "paused"
    with pytest.raises(UnplugPending, match="it stands still"):
        await release(qmp, "d")
    assert guest.told == []
    guest.bus = "SCSI"  # QEMU takes these away by itself
    await release(qmp, "d")


async def test_a_cpu_is_told_of_by_a_path(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.devices.add("cpu1")
    path = "/machine/peripheral/cpu1/lapic"

    def says(_: str) -> None:
        guest.devices.clear()
        guest.fake.emit("DEVICE_DELETED", {"path": path})

    guest.says = says
    await release(qmp, "cpu1", path=path)


async def test_one_that_goes_without_a_word(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    guest.devices.add("usb1")
    guest.says = guest.devices.discard  # as QEMU does with a USB controller
    begun = trio.current_time()
    await release(qmp, "usb1")
    assert trio.current_time() - begun < 1
    assert guest.told == ["device_del"]


async def test_one_that_is_not_there_is_gone(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    await release(qmp, "d")


async def test_graces_are_no_guest_refusal(
    qmp: Session, guest: Guest, autojump_clock: MockClock
) -> None:
    """What the caller bounds is the caller's: his cancellation comes through."""
    guest.devices.add("d")
    guest.says = lambda device: None
    with trio.move_on_after(1) as scope:
        try:
            await release(qmp, "d", grace=30)
        except GuestRefused:
            pytest.fail("it was cancelled, not refused")
    assert scope.cancelled_caught
