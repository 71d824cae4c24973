"""The console over a memory stream that plays the guest's serial port."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.operations._protocols import Verdict
from qmpkit.operations.console import Console
from qmpkit.operations.errors import ConsoleEnded, OutputLost
from qmpkit.process.logs import BoundedLog
from qmpkit.process.status import ExitStatus
from qmpkit.testing.cancel import cancel_at_every_checkpoint

Guest = trio.StapledStream[MemorySendStream, MemoryReceiveStream]
LEAST = 64 * 1024


@asynccontextmanager
async def booted(
    *, log: BoundedLog | None = None, keep: int = LEAST, verdict: Verdict | None = None
) -> AsyncIterator[tuple[Guest, Console]]:
    """A console whose drain is running, and the guest's end of it."""
    guest, host = trio.testing.memory_stream_pair()
    console = Console(host, name="web", log=log, keep=keep, verdict=verdict)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.run)
        yield guest, console
        nursery.cancel_scope.cancel()


async def printed(guest: Guest, *chunks: bytes) -> None:
    """Print each chunk and let the console and its readers take it, one by one."""
    for chunk in chunks:
        await guest.send_all(chunk)
        await trio.testing.wait_all_tasks_blocked()


async def test_three_patterns_each_split_across_reads() -> None:
    async with booted() as (guest, console):
        found = []

        async def expecting() -> None:
            for _ in range(3):
                match = await console.expect("login: ", b"# ", re.compile(r"pid (\d+)\r"))
                found.append((match.index, match.before, match.text))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expecting)
            await trio.testing.wait_all_tasks_blocked()
            await printed(guest, b"Debian lo", b"gin", b": ro", b"ot pi", b"d 4", b"2", b"\r\n#")
            assert [index for index, _, _ in found] == [0, 2]
            await printed(guest, b" ")
    assert found == [(0, "Debian ", "login: "), (2, "root ", "pid 42\r"), (1, "\n", "# ")]


async def test_regex_is_found_in_a_trickle_that_never_pauses(autojump_clock: MockClock) -> None:
    """Output byte by byte, faster than the settling time, cannot postpone a regular expression."""
    async with booted(keep=1 << 20) as (guest, console):
        await printed(guest, b"." * 10_000)
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for byte in b"ready in 17 s\r\n" + b"." * 100:
                    await guest.send_all(bytes([byte]))
                    await trio.sleep(0.001)

            nursery.start_soon(trickle)
            match = await console.expect(re.compile(r"in (\d+) s"), re.compile("never"))
            assert match.group(1) == "17"
            assert trio.current_time() < 0.013 + 0.006


async def test_plain_text_is_found_at_once_beside_a_regex_that_waits() -> None:
    async with booted(keep=1 << 20) as (guest, console):
        await printed(guest, b"." * 10_000)
        async with trio.open_nursery() as nursery:
            seen = []

            async def expecting() -> None:
                seen.append((await console.expect(re.compile("ne?ver"), "login")).index)

            nursery.start_soon(expecting)
            await printed(guest, b"l", b"o", b"g", b"i", b"n")
            assert seen == [1]


async def test_cancelled_expect_leaves_its_place(autojump_clock: MockClock) -> None:
    async with booted() as (guest, console):
        await printed(guest, b"one two thr")
        await console.expect("one")
        with trio.move_on_after(3) as scope:
            await console.expect("three")
        assert scope.cancelled_caught
        await printed(guest, b"ee")
        assert (await console.expect("three")).before == " two "


async def test_expect_cancelled_anywhere_is_repeated_with_the_same_result() -> None:
    async with booted(keep=1 << 20) as (guest, console):
        await printed(guest, b"." * 10_000)

        async def boot() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(printed, guest, b"lo", b"g", b"in: ", b"x" * 2000, b"pid 7\r")
                await console.expect("login: ")
                await console.expect(re.compile(r"pid (\d+)\r"), "never")

        async def try_again() -> None:
            await printed(guest, b"\nend")
            await console.expect("\nend")
            assert console._reader.place == console._feed.ring.end

        assert await cancel_at_every_checkpoint(boot, after=try_again) > 5


async def test_expect_finds_what_was_printed_before_it_was_called() -> None:
    async with booted() as (guest, console):
        await printed(guest, b"a b", b" c")
        with trio.CancelScope() as scope:
            scope.cancel()
            await console.expect("a")  # a checkpoint also when nothing is to be waited for
        assert scope.cancelled_caught
        assert (await console.expect("b", "a")).index == 1
        assert (await console.expect("c", "a")).before == " b "


async def test_end_while_waiting_quotes_the_last_lines() -> None:
    async with booted() as (guest, console):
        await printed(guest, b"\r\n".join(b"line %d" % i for i in range(40)))
        await printed(guest, b"\r\n\x1b[31mKernel panic\r\n")
        await guest.aclose()
        with pytest.raises(ConsoleEnded) as caught:
            await console.expect("login: ", re.compile("# $"))
    said = str(caught.value)
    assert said.startswith(
        "machine 'web': serial0 ended before 'login: ' or '# $' was printed. Its last lines:\n"
    )
    assert said.endswith("\\x1b[31mKernel panic")
    assert "line 26\n" in said
    assert "line 25" not in said
    assert isinstance(caught.value, MachineGone)


@pytest.mark.parametrize("code", [0, -11])
async def test_the_verdict_tells_a_crash_from_a_shutdown(code: int) -> None:
    status = ExitStatus(code, None) if code == 0 else ExitStatus(None, -code)
    cause = ExitCause.GUEST_SHUTDOWN if code == 0 else ExitCause.CRASHED
    report = ExitReport("web", cause, status, uptime=3.0)

    async def verdict() -> ExitReport:
        await trio.lowlevel.checkpoint()
        return report

    async with booted(verdict=verdict) as (guest, console):
        await printed(guest, b"the last line")
        await guest.aclose()
        for use in (console.expect("x"), console.send(b"x")):
            with pytest.raises((ConsoleEnded, MachineDied)) as caught:
                await use
            gone = caught.value if code == 0 else caught.value.__cause__
            assert isinstance(gone, ConsoleEnded)
            assert gone.last_lines == "the last line"
            assert isinstance(caught.value, ConsoleEnded if code == 0 else MachineDied)
            assert caught.value.report is report
    assert "guest shut itself down after 3.0 s. Its last lines" in str(gone) or code != 0


async def test_text_kept_is_still_found_after_the_end() -> None:
    async with booted() as (guest, console):
        await printed(guest, b"." * 10_000 + b"Power down")
        await guest.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert console.ended
        assert (await console.expect(re.compile("P.wer"))).text == "Power"
        assert console.output.endswith("Power down")
        assert await console.reader(replay=True).read() == console.output_bytes
        assert await console.reader().read() == b""


async def test_end_of_the_service_wakes_who_waits() -> None:
    """The machine's nursery cancels `run` at the end; nobody may be left waiting."""
    guest, host = trio.testing.memory_stream_pair()
    console = Console(host, name="web")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as service:

            async def fails() -> None:
                with pytest.raises(ConsoleEnded, match="printed nothing"):
                    await console.expect("x")

            nursery.start_soon(fails)
            async with trio.open_nursery() as services:
                services.start_soon(console.run)
                await trio.testing.wait_all_tasks_blocked()
                service.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await guest.send_all(b"x")


async def test_output_dropped_before_it_was_searched_is_an_error_and_then_goes_on() -> None:
    async with booted() as (guest, console):
        await printed(guest, b"login: " + b"x" * LEAST, b"later")
        with pytest.raises(OutputLost) as caught:
            await console.expect("login: ")
        assert caught.value.dropped == console.dropped == len("login: later")
        assert "12 bytes of serial0 were dropped" in str(caught.value)
        assert (await console.expect("later")).dropped == 0


async def test_searched_output_may_be_dropped_while_waiting() -> None:
    """A boot that prints more than is kept is no error for who was looking all the time."""
    async with booted() as (guest, console):
        found = []

        async def expecting() -> None:
            found.append(await console.expect("login: ", re.compile("pan(ic)")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expecting)
            await printed(guest, *[b"." * 10_000] * 10, b"login: ")
    (match,) = found
    assert match.text == "login: "
    assert match.dropped == 100_007 - LEAST
    assert len(match.raw_before) + match.dropped == 100_000


async def test_readers_have_places_of_their_own() -> None:
    async with booted() as (guest, console):
        await printed(guest, b"one ")
        late, early = console.reader(), console.reader(replay=True)
        await printed(guest, b"two ")
        assert (await late.expect("o")).before == "tw"
        assert (await early.expect("o")).before == ""
        assert (await console.expect("o")).before == ""
        assert (early.place, late.place) == (1, 7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.expect, "never")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match=r"console\.reader\(\)"):
                await console.expect("never")
            nursery.cancel_scope.cancel()
        assert (await console.expect("t")).before == "ne "  # and it is free again


async def test_stream_gives_every_byte_until_the_end() -> None:
    async with booted() as (guest, console):
        chunks = []

        async def streaming() -> None:
            async for chunk in console.stream():
                chunks.append(chunk)

        await printed(guest, b"before")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streaming)
            await printed(guest)
            await printed(guest, b"one", b"two")
            await guest.aclose()
    assert chunks == [b"one", b"two"]


async def test_a_guest_is_never_blocked_and_memory_is_bounded() -> None:
    async with booted() as (guest, console):
        for _ in range(100):
            await guest.send_all(b"y" * 40_000)
        await trio.testing.wait_all_tasks_blocked()
        assert len(console.output_bytes) == LEAST
        assert console.dropped == 4_000_000 - LEAST


async def test_send() -> None:
    async with booted() as (guest, console):
        await console.send(b"\x03")
        await console.send_line("echo grüß")
        await console.send_line("boot", end="\r")
        assert await guest.receive_some() == "\x03echo grüß\nboot\r".encode()
        await guest.aclose()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConsoleEnded, match="ended before input was sent"):
            await console.send(b"x")


async def test_send_to_a_guest_that_dies_meanwhile() -> None:
    guest, host = trio.testing.lockstep_stream_pair()
    console = Console(host, name="web")
    async with trio.open_nursery() as nursery:

        async def sending() -> None:
            with pytest.raises(ConsoleEnded):
                await console.send(b"x")

        nursery.start_soon(sending)
        await trio.testing.wait_all_tasks_blocked()
        await guest.aclose()


async def test_sends_of_two_tasks_do_not_mix() -> None:
    guest, host = trio.testing.lockstep_stream_pair()
    console = Console(host, name="web")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.send, b"a" * 50)
        nursery.start_soon(console.send, b"b" * 50)
        got = b""
        while len(got) < 100:
            got += await guest.receive_some(7)
    assert got in (b"a" * 50 + b"b" * 50, b"b" * 50 + b"a" * 50)


async def test_log_gets_everything(tmp_path: Path) -> None:
    async with booted(log=BoundedLog(tmp_path / "serial0.log")) as (guest, console):
        await printed(guest, b"12345", b"67890")
        await guest.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert console.ended
    assert (tmp_path / "serial0.log").read_bytes() == b"1234567890"


async def test_log_is_complete_also_when_all_is_cancelled(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with booted(log=BoundedLog(tmp_path / "serial0.log")) as (guest, _):
            await printed(guest, b"the last words")
            scope.cancel()
    assert (tmp_path / "serial0.log").read_bytes() == b"the last words"


def test_too_small_a_ring_is_refused() -> None:
    _, host = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="at least 65536 bytes"):
        Console(host, name="web", keep=1000)
