"""Screen and keyboard of a real guest."""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, SpecInvalid
from qmpkit.testing import guests

pytestmark = pytest.mark.live


@asynccontextmanager
async def shown(qemu: str) -> AsyncIterator[VM]:
    spec = qmpkit.load_profile("tiny-vga")
    async with guests.booted(attrs.evolve(spec, qemu=qemu, accel="tcg")) as vm:
        yield vm


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours of a PNG of eight bits, decoded to the last byte."""
    at, data, header = 8, b"", b""
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", png, at + 8 + length)[0]
        header, data = (body if kind == b"IHDR" else header), data + body * (kind == b"IDAT")
        at += length + 12
    width, height, depth, kind_of_colour = struct.unpack_from(">IIBB", header)
    assert depth == 8
    channels = {2: 3, 6: 4}[kind_of_colour]
    raw = zlib.decompress(data)
    stride = 1 + width * channels
    assert len(raw) == height * stride
    colours, above = set(), bytes(stride - 1)
    for row in range(height):
        line = raw[row * stride : (row + 1) * stride]
        above = unfiltered(line[0], bytearray(line[1:]), above, channels)
        colours |= {above[i : i + channels] for i in range(0, len(above), channels)}
    return width, height, colours


def unfiltered(kind: int, line: bytearray, above: bytes, channels: int) -> bytes:
    """One row, its filter (PNG specification, section 9) undone."""
    for i in range(len(line)):
        left = line[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        up = above[i]
        closest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
        line[i] = (line[i] + (0, left, up, (left + up) // 2, closest)[kind]) % 256
    return bytes(line)


async def test_a_screenshot_shows_more_than_one_colour(qemu: str, tmp_path: Path) -> None:
    async with shown(qemu) as vm:
        picture = await vm.screenshot(tmp_path / "screen.png")
        width, height, colours = pixels(picture)
        assert (width, height) >= (640, 400)
        assert len(colours) > 1
        assert (tmp_path / "screen.png").read_bytes() == picture


def descriptors_of(vm: VM) -> int:
    return len([*Path(f"/proc/{vm.pid}/fd").iterdir()])


async def test_many_screenshots_use_nothing_up(qemu: str) -> None:
    async with shown(qemu) as vm:
        await vm.screenshot()
        before = descriptors_of(vm)
        for _ in range(5):
            await vm.screenshot()
        async with vm.paused():
            first = await vm.screenshot()
            for _ in range(5):
                assert await vm.screenshot() == first  # nothing moves
        assert descriptors_of(vm) == before
        assert len(await vm.execute("query-fdsets")) == 1


async def typed(vm: VM, text: str) -> None:
    """Type *text* so that a guest of any slowness reads all of it.

    On a busy host it may stand still for longer than its keyboard can hold the keys.  Its
    only processor takes what the keyboard has before it goes on with the agent's answer.
    """
    for at in range(0, len(text), 2):
        await vm.type_text(text[at : at + 2])
        await vm.agent.ping()


async def test_typed_text_and_keys_reach_the_guest(qemu: str) -> None:
    marks = '~!#${}|:<?-[;/ AZaz09\\"'  # 80 ms each; the unit tests have them all
    async with shown(qemu) as vm:
        await typed(vm, f"echo '{marks}' >/dev/ttyS0\n")
        await vm.console.expect(marks)
        # It says that it runs: the shell swallows a Ctrl-C that comes between Enter and that.
        await typed(vm, "sh -c 'echo sle''eping >/dev/ttyS0; exec sleep 1000'\n")
        await vm.console.expect("sleeping")
        await vm.send_keys("ctrl-c")
        await typed(vm, "echo key-$((6 * 7)) >/dev/ttyS0")
        await vm.send_keys("enter")
        await vm.console.expect("key-42")


async def test_typing_at_full_pace_changes_the_picture(qemu: str) -> None:
    async with shown(qemu) as vm:
        before = await vm.screenshot()
        for attempt in range(5):  # one that stands still too long loses keys
            await vm.type_text(f"echo se''en-{attempt} | tee /dev/ttyS0\n")
            with trio.move_on_after(5):
                await vm.console.expect(f"seen-{attempt}")
                break
            await vm.send_keys("ctrl-c")
        else:
            pytest.fail("no line arrived as it was typed")
        assert await vm.screenshot() != before


async def test_a_machine_without_a_screen_says_what_to_add(qemu: str) -> None:
    spec = qmpkit.MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")
    async with qmpkit.running(spec, paused=True) as vm:
        with pytest.raises(SpecInvalid, match=r'display: it has no screen .*add display = "std"'):
            await vm.screenshot()
