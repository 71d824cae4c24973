"""When there was no sign of life of a destination: by a source that says what we want."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from qmpkit.operations.migration.silence import SILENCE, Silence
from qmpkit.qmp.errors import MonitorLost
from tests.unit.operations.migration.source import Source

pytestmark = pytest.mark.bound(10_000)  # seconds of a clock that jumps


class Sends(Source):
    """A source; `rate`: bytes a second that go."""

    def __init__(self) -> None:
        super().__init__("postcopy-active")
        self.unheard_since: float | None = None
        self.rate = 0
        self.hangs = self.has_ended = False

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        if self.hangs:
            await trio.sleep_forever()
        if self.has_ended:
            raise MonitorLost(self.name, command)
        sent = round(trio.current_time() * self.rate)
        self.answer = {"status": "postcopy-active", "ram": {"transferred": sent}}
        return await super().execute(command, arguments)

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        raise AssertionError(command)

    def unheard(self) -> float:
        since = self.unheard_since
        return 0.0 if since is None else trio.current_time() - since

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[Silence]:
        silence = Silence(self, self.unheard)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(silence.listened)
            yield silence
            nursery.cancel_scope.cancel()


@pytest.fixture
async def sends() -> Sends:
    return Sends()


@pytest.mark.parametrize("hangs", [False, True])
async def test_no_word_and_no_memory(
    autojump_clock: trio.testing.MockClock, sends: Sends, hangs: bool
) -> None:
    """A source that says nothing itself waits for the network with all that it has."""
    async with sends.followed() as silence:
        await trio.sleep(100)
        assert not silence.is_complete
        sends.unheard_since = trio.current_time()
        sends.hangs = hangs
        await trio.sleep(SILENCE - 2)
        assert not silence.is_complete
        await trio.sleep(10)
        assert silence.is_complete
        sends.unheard_since, sends.hangs = None, False


async def test_memory_that_goes_needs_no_word(
    autojump_clock: trio.testing.MockClock, sends: Sends
) -> None:
    """Of a supervisor that was killed: its QEMU takes it in."""
    sends.unheard_since, sends.rate = trio.current_time(), 100
    async with sends.followed() as silence:
        await trio.sleep(500)
        assert not silence.is_complete
        sends.rate = 0
        await trio.sleep(SILENCE - 5)
        assert not silence.is_complete
        await trio.sleep(10)
        assert silence.is_complete
        sends.rate = 100
        await trio.sleep(2)
        assert not silence.is_complete


async def test_a_word_is_enough(autojump_clock: trio.testing.MockClock, sends: Sends) -> None:
    """A destination that is busy takes nothing in for a while."""
    async with sends.followed() as silence:
        for _ in range(20):
            sends.unheard_since = trio.current_time()
            await trio.sleep(SILENCE - 2)
            assert not silence.is_complete


async def test_the_end_of_the_source_is_told_by_others(
    autojump_clock: trio.testing.MockClock, sends: Sends
) -> None:
    sends.unheard_since, sends.has_ended = trio.current_time() - 100, True
    async with sends.followed():
        await trio.sleep(100)
