"""The serial console of a real guest."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, AttachEnd, ConsoleEnded, MachineDied
from qmpkit.testing import guests
from tests.sizes import CONSOLE_FLOOD, QEMU_VERSIONS

pytestmark = pytest.mark.live


def booted(qemu: str) -> AbstractAsyncContextManager[VM]:
    spec = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg")
    return guests.booted(spec)


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_patterns_split_across_the_guests_writes(qemu: str) -> None:
    async with booted(qemu) as vm:
        await vm.console.send_line("stty -echo")
        await vm.console.expect("tiny# ")
        pieces = ["lo", "gin", ": pi", "d 4", "2\\nre", "a", "dy"]
        script = "; ".join(f"printf '{piece}'; usleep 20000" for piece in pieces)
        await vm.console.send_line(script)
        wanted = ("ready", re.compile(r"pid (\d+)\r"), b"login: ")
        found = [await vm.console.expect(*wanted) for _ in range(3)]
        assert [match.index for match in found] == [2, 1, 0]
        assert found[1].group(1) == "42"


async def test_every_byte_arrives_in_every_place(qemu: str) -> None:
    """A reader, the default place and the whole output each have the whole text."""
    numbers = "".join(f"{number}\r\n" for number in range(1, 10_001))
    async with booted(qemu) as vm:
        chunks = vm.console.stream()
        await vm.console.send_line("seq 1 10000")
        match = await vm.console.expect(re.compile(r"\r\n9999\r\n10000\r\n"))
        assert (match.before + match.text).endswith(numbers)
        read = b""
        async for chunk in chunks:
            read += chunk
            if b"10000\r\ntiny# " in read:
                break
        assert numbers in read.decode()
        assert numbers in vm.console.output


async def arrived(vm: VM, text: str) -> None:
    """Wait for it with a reader of our own, whatever that one misses meanwhile."""
    reader = vm.console.reader(replay=True)
    while True:
        with suppress(qmpkit.OutputLost):
            await reader.expect(text)
            return


@pytest.mark.bound(240)
async def test_a_guest_that_prints_is_never_blocked(qemu: str) -> None:
    async with booted(qemu) as vm:
        command = f"dd if=/dev/zero bs=1k count={CONSOLE_FLOOD} 2>/dev/null | tr '\\0' x"
        done = await vm.agent.run(
            ["sh", "-c", f"{{ {command}; echo; echo flood-over; }} >/dev/ttyS0"]
        )
        assert done.ok
        await arrived(vm, "flood-over")  # the guest's driver and QEMU's socket hold the last of it
        with pytest.raises(qmpkit.OutputLost) as caught:
            await vm.console.expect("flood-over")
        assert CONSOLE_FLOOD * 1024 - len(vm.console.output_bytes) < vm.console.dropped
        assert 0 < caught.value.dropped <= vm.console.dropped
        assert (await vm.console.expect("flood-over")).raw == b"flood-over"
        assert len(vm.console.output_bytes) == 1024 * 1024


async def test_a_poweroff_while_something_is_awaited_quotes_the_last_lines(qemu: str) -> None:
    async with booted(qemu) as vm:
        await vm.console.send_line("echo famous last words; poweroff -f")
        with pytest.raises(ConsoleEnded, match="famous last words"):
            await vm.console.expect("this is never printed")
        assert (await vm.wait()).expected


async def test_a_crash_while_something_is_awaited_is_the_crash(qemu: str) -> None:
    with pytest.raises(MachineDied, match="SIGKILL"):
        async with booted(qemu) as vm, trio.open_nursery() as nursery:
            nursery.start_soon(vm.console.expect, "this is never printed")
            await trio.sleep(0.05)
            os.kill(vm.pid, 9)


async def test_what_is_typed_while_the_guest_is_paused_waits_for_it(qemu: str) -> None:
    async with booted(qemu) as vm:
        async with vm.paused():
            await vm.console.send_line("echo woken-$((6 * 7))")
            with trio.move_on_after(0.2) as scope:
                await vm.console.expect("woken-42")
            assert scope.cancelled_caught
        await vm.console.expect("woken-42")


async def test_whole_output_goes_to_a_log(qemu: str, tmp_path: Path) -> None:
    guests.build_kvm_tiny()
    spec = attrs.evolve(qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="tcg")
    async with qmpkit.running(spec, logs=tmp_path) as vm:
        await vm.console.expect(guests.KVM_TINY_READY)
        await vm.console.send_line("logged")
        await vm.console.expect("logged")
    assert (tmp_path / "serial0.log").read_bytes() == vm.console.output_bytes


class Person:
    """Somebody at a terminal that is attached to a console."""

    def __init__(self) -> None:
        self.screen, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.end: AttachEnd | None = None
        self.left = trio.Event()

    async def attach(self, vm: VM) -> None:
        self.end = await vm.console.attach(self.terminal, self.terminal)
        self.left.set()

    @property
    def is_raw(self) -> bool:
        return termios.tcgetattr(self.terminal) != self.before

    def types(self, text: bytes) -> None:
        os.write(self.screen, text)

    async def sees(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            await trio.lowlevel.wait_readable(self.screen)
            seen += os.read(self.screen, 4096)


@asynccontextmanager
async def person_at(vm: VM) -> AsyncIterator[Person]:
    person = Person()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(person.attach, vm)
            while not person.is_raw:  # what is typed before is edited by our own terminal
                await trio.lowlevel.checkpoint()
            yield person
    finally:
        os.close(person.screen)
        os.close(person.terminal)


async def test_a_person_works_on_the_console(qemu: str) -> None:
    async with booted(qemu) as vm, person_at(vm) as person:
        # The one that is interrupted says so itself: between two commands of the shell's a
        # Ctrl-C may find neither.
        person.types(b"""sh -c 'echo sle""eping; exec sleep 1000'\r""")
        await person.sees(b"sleeping\r\n")
        person.types(b"\x03")  # reaches the guest, not us
        await person.sees(b"tiny# ")
        person.types(b"echo $((6 * 7))-after-ctrl-c\r")
        await person.sees(b"42-after-ctrl-c")
        person.types(b"\x1d")
        await person.left.wait()
        assert person.end is AttachEnd.ESCAPE
        assert not person.is_raw
        await vm.console.expect("42-after-ctrl-c")  # its own place is not disturbed


async def test_a_person_sees_the_machine_end(qemu: str) -> None:
    async with booted(qemu) as vm:
        async with person_at(vm) as person:
            person.types(b"poweroff -f\r")
            await person.sees(b"poweroff -f\r\n")
            await vm.wait()
        assert person.end is AttachEnd.MACHINE
