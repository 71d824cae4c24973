"""Screenshots: memory passed to QEMU once, and never used again when that may be unsafe."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from qmpkit._trio import ServiceNursery, service_nursery
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.operations.screen import screenshot
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import FakeQemu, Late, Refuse, fake_qemu
from qmpkit.testing.leaks import leaks

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR (%d) \0\0\0\0IEND\xaeB\x60\x82"


@attrs.define(eq=False)
class Machine:
    """A `Screened` over a fake QEMU that draws into the descriptors it was given."""

    session: Session
    services: ServiceNursery
    spec: MachineSpec = attrs.field(factory=lambda: MachineSpec(name="web", display="std"))

    @property
    def name(self) -> str:
        return self.spec.name

    def subscribe(self, *names: str, **options: Any) -> Any:
        return self.session.subscribe(*names, **options)

    async def execute(self, command: str, arguments: Any = None, /, **options: Any) -> Any:
        return await self.session.execute(command, arguments, **options)


class Artist:
    """Draws as QEMU does: truncates, then writes where the descriptor stands."""

    def __init__(self, fake: FakeQemu) -> None:
        self.fake = fake
        self.drawn = 0
        self.picture = PNG
        fake.on("screendump", self.draw)

    async def draw(self, request: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        assert request["format"] == "png"
        wanted = int(request["filename"].removeprefix("/dev/fdset/"))
        fd = next(fd for fdset, fd in self.fake._fdsets if fdset == wanted)
        self.drawn += 1
        os.ftruncate(fd, 0)
        os.write(fd, self.picture % self.drawn if b"%d" in self.picture else self.picture)
        return {}

    @property
    def sets(self) -> int:
        return len(self.fake._fdsets)


@asynccontextmanager
async def machine() -> AsyncIterator[tuple[Machine, Artist]]:
    async with (
        fake_qemu() as fake,
        service_nursery() as services,
        open_session(fake.dial("socket"), name="web") as session,
    ):
        yield Machine(session, services), Artist(fake)


async def test_pictures_share_one_set_and_leave_no_descriptor(tmp_path: Path) -> None:
    async with leaks(), machine() as (vm, artist):
        assert await screenshot(vm) == PNG % 1
        artist.drawn = 1_000_000  # a longer one, then a shorter
        assert await screenshot(vm, tmp_path / "a.png") == PNG % 1_000_001
        artist.drawn = 0
        assert await screenshot(vm) == PNG % 1
        assert artist.sets == 1
    assert (tmp_path / "a.png").read_bytes() == PNG % 1_000_001


async def test_at_the_same_time_they_do_not_mix() -> None:
    async with machine() as (vm, _):
        got: list[bytes] = []

        async def take() -> None:
            got.append(await screenshot(vm))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(take)
        assert sorted(got) == [PNG % n for n in range(1, 6)]


async def test_a_machine_without_a_display() -> None:
    async with machine() as (vm, artist):
        vm.spec = MachineSpec(name="web")
        with pytest.raises(SpecInvalid, match=r"'web'.*no screen.*\(add display = \"std\"\)"):
            await screenshot(vm)
        assert artist.sets == 0


async def test_a_qemu_that_cannot_is_asked_with_the_same_set_again() -> None:
    async with machine() as (vm, artist):

        def refuse(_: object) -> None:
            raise Refuse("Enable PNG support with libpng for screendump")

        artist.fake.on("screendump", refuse)
        for _ in range(2):
            with pytest.raises(CommandRefused, match="libpng"):
                await screenshot(vm)
        assert artist.sets == 1


@pytest.mark.parametrize("picture", [b"", b"P6 1 1 255\n...", PNG[:-1]])
async def test_what_is_no_whole_png_is_an_error(picture: bytes) -> None:
    async with machine() as (vm, artist):
        artist.picture = picture
        with pytest.raises(ImageFailed, match="no complete PNG"):
            await screenshot(vm)


async def test_a_set_that_qemu_may_still_draw_into_is_not_used_again(
    autojump_clock: MockClock,
) -> None:
    async with machine() as (vm, artist):
        await screenshot(vm)
        first = {fdset for fdset, _ in artist.fake._fdsets}
        artist.fake.misbehave("screendump", Late(100))
        with trio.move_on_after(5):
            await screenshot(vm)
        assert artist.sets == 0
        assert await screenshot(vm) == PNG % 3
        assert not first & {fdset for fdset, _ in artist.fake._fdsets}


async def test_cancelled_anywhere_leaves_no_set_and_no_descriptor() -> None:
    async with machine() as (vm, artist):
        await screenshot(vm)

        async def only_one_set() -> None:
            assert await screenshot(vm) == PNG % artist.drawn
            assert artist.sets == 1

        assert await cancel_at_every_checkpoint(lambda: screenshot(vm), after=only_one_set) >= 2
        fresh = Machine(vm.session, vm.services)

        async def use() -> None:
            await screenshot(Machine(vm.session, vm.services))

        async with leaks():
            with trio.CancelScope() as scope:
                scope.cancel()
                await screenshot(fresh)
        assert await cancel_at_every_checkpoint(use, limit=2) == 2
        assert artist.sets == 1
