"""Keys by their names and text by its characters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qmpkit.operations.errors import UnknownKey
from qmpkit.operations.keys import QKEYS, send_keys, type_text
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import FakeQemu, fake_qemu


@asynccontextmanager
async def machine() -> AsyncIterator[tuple[Session, FakeQemu]]:
    async with fake_qemu() as fake, open_session(fake.dial(), name="web") as monitor:
        yield monitor, fake


def pressed(fake: FakeQemu) -> list[str]:
    """What was pressed, a chord a line."""
    sent = [call.arguments["keys"] for call in fake.calls if call.command == "send-key"]
    assert all(key["type"] == "qcode" for keys in sent for key in keys)
    return ["-".join(key["data"] for key in keys) for keys in sent]


async def test_chords(autojump_clock: MockClock) -> None:
    async with machine() as (monitor, fake):
        await send_keys(monitor, "ctrl-alt-delete", "Ctrl+Alt+Del", "enter", "alt-f2", "minus")
        assert pressed(fake) == ["ctrl-alt-delete", "ctrl-alt-delete", "ret", "alt-f2", "minus"]
        # Each key is pressed and released, each 20 ms: returned when the last is released.
        assert trio.current_time() == pytest.approx(2 * 0.02 * (3 + 3 + 1 + 2 + 1))
        assert {call.arguments["hold-time"] for call in fake.calls[1:]} == {20}


async def test_text_on_a_us_keyboard(autojump_clock: MockClock) -> None:
    async with machine() as (monitor, fake):
        await type_text(monitor, 'aZ 1!\n"~\t|')
        assert pressed(fake) == [
            *["a", "shift-z", "spc", "1", "shift-1", "ret", "shift-apostrophe"],
            *["shift-grave_accent", "tab", "shift-backslash"],
        ]


async def test_every_printable_character_can_be_typed_and_no_two_alike(
    autojump_clock: MockClock,
) -> None:
    printable = "".join(map(chr, range(32, 127)))
    async with machine() as (monitor, fake):
        await type_text(monitor, printable)
        assert len(set(pressed(fake))) == len(printable)
        assert {key for chord in pressed(fake) for key in chord.split("-")} <= QKEYS


async def test_an_unknown_key_is_refused_before_anything_is_pressed() -> None:
    async with machine() as (monitor, fake):
        fake.on("query-qmp-schema", [{"meta-type": "enum", "name": "7", "values": ["on", "off"]}])
        with pytest.raises(UnknownKey, match=r"'atl': no such key \(did you mean alt") as caught:
            await send_keys(monitor, "ret", "ctrl-atl-delete")
        assert caught.value.key == "atl"
        assert isinstance(caught.value, ValueError)
        with pytest.raises(UnknownKey, match="see QEMU's QKeyCode"):
            await send_keys(monitor, "qqqqqq")
        for wrong in ("", "ctrl-", "ctrl--a"):
            with pytest.raises(UnknownKey, match="not a chord of keys"):
                await send_keys(monitor, "ret", wrong)
        with pytest.raises(UnknownKey, match="'é': no key of a US keyboard"):
            await type_text(monitor, "abcé")
        assert pressed(fake) == []


async def test_keys_that_only_this_qemu_has(autojump_clock: MockClock) -> None:
    async with machine() as (monitor, fake):
        enum = {"meta-type": "enum", "name": "12", "values": sorted({*QKEYS, "f13"})}
        fake.on("query-qmp-schema", [{"meta-type": "object", "name": "1", "members": []}, enum])
        await send_keys(monitor, "ctrl-f13")
        assert pressed(fake) == ["ctrl-f13"]
        with pytest.raises(UnknownKey, match=r"'f14'.*f13"):
            await send_keys(monitor, "f14")
