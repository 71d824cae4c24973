"""The guest agent of a real guest."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, AgentRefused, AgentSilent, GuestCommandFailed, MachineGone
from qmpkit.testing import guests
from tests.sizes import AGENT_CANCELS, QEMU_VERSIONS

pytestmark = pytest.mark.live

MIB = 1024 * 1024


def booted(qemu: str, **changes: object) -> AbstractAsyncContextManager[VM]:
    spec = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg")
    return guests.booted(attrs.evolve(spec, **changes))  # type: ignore[arg-type]


async def sha256(vm: VM, path: str) -> str:
    return (await vm.agent.run(["sha256sum", path], check=True)).text.split()[0]


async def test_a_megabyte_there_and_back_by_checksum(qemu: str) -> None:
    data = os.urandom(MIB)
    digest = hashlib.sha256(data).hexdigest()
    async with booted(qemu) as vm:
        await vm.agent.write_file("/tmp/file", data)
        assert await sha256(vm, "/tmp/file") == digest
        assert hashlib.sha256(await vm.agent.read_file("/tmp/file")).hexdigest() == digest
        through = await vm.agent.run(["tee", "/tmp/input"], input=data)
        assert await sha256(vm, "/tmp/input") == digest
        assert hashlib.sha256(through.stdout).hexdigest() == digest
        assert not through.truncated


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_programs(qemu: str) -> None:
    async with booted(qemu) as vm:
        script = "echo out; echo err >&2; echo $A-$HOME; exit 3"
        done = await vm.agent.run(["sh", "-c", script], env={"A": "b c"})
        assert (done.status, done.text, done.error_text) == (3, "out\nb c-\n", "err\n")
        assert (await vm.agent.run(["sh", "-c", "kill -9 $$"])).signal == 9
        with pytest.raises(GuestCommandFailed, match=r"ls /nope ended with exit status 1: .*No "):
            await vm.agent.run(["ls", "/nope"], check=True)
        with pytest.raises(AgentRefused, match=r"to run '/nope'.*No such file"):
            await vm.agent.run(["/nope"])
        argument = "a 'b' \"c\" $d \\ * \n\tü"
        assert (await vm.agent.run(["printf", "%s", argument])).text == argument


async def test_programs_run_side_by_side(qemu: str) -> None:
    """The one that waits is ended by the one that comes after it."""
    async with booted(qemu) as vm, trio.open_nursery() as nursery:
        await vm.agent.run(["mkfifo", "/tmp/pipe"], check=True)
        got = []

        async def read() -> None:
            got.append((await vm.agent.run(["cat", "/tmp/pipe"])).text)
            nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        await vm.agent.run(["sh", "-c", "echo through >/tmp/pipe"], check=True)
        await trio.sleep_forever()
    assert got == ["through\n"]


async def test_files(qemu: str) -> None:
    async with booted(qemu) as vm:
        await vm.agent.write_file("/tmp/a", "one ")
        await vm.agent.write_file("/tmp/a", b"two", append=True)
        assert await vm.agent.read_file("/tmp/a") == b"one two"
        await vm.agent.write_file("/tmp/a", "")
        assert await vm.agent.read_file("/tmp/a") == b""
        with pytest.raises(AgentRefused, match=r"read '/nope': .*No such file"):
            await vm.agent.read_file("/nope")
        with pytest.raises(AgentRefused, match="longer than 65536 bytes"):
            await vm.agent.read_file("/dev/zero", limit=65536)
        with pytest.raises(AgentRefused, match=r"write '/dev/full': .*No space left"):
            await vm.agent.write_file("/dev/full", b"x")


async def test_what_the_guest_tells(qemu: str) -> None:
    async with booted(qemu) as vm:
        assert await vm.agent.host_name() == "tiny"
        info = await vm.agent.os_info()
        assert (info.machine, info.kernel_release.split(".")[0]) == ("x86_64", "6")
        by_name = {interface.name: interface for interface in await vm.agent.interfaces()}
        assert "127.0.0.1/8" in map(str, by_name["lo"].addresses)


async def test_a_paused_guest_answers_when_it_goes_on(qemu: str) -> None:
    async with booted(qemu) as vm:
        async with vm.paused():
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.3):
                await vm.agent.run(["true"])
        assert (await vm.agent.run(["echo", "awake"])).text == "awake\n"


async def test_a_cancelled_program_is_killed_and_its_agent_keeps_nothing(qemu: str) -> None:
    async with booted(qemu) as vm:
        with trio.move_on_after(0.3):
            await vm.agent.run(["sleep", "1000"])
        assert (await vm.agent.run(["pidof", "sleep"])).status == 1
        with trio.move_on_after(0.3):
            await vm.agent.run(["sleep", "2000"], on_cancel="leave")
        assert (await vm.agent.run(["pidof", "sleep"])).ok


@pytest.mark.bound(180)
async def test_cancelled_at_random_points_it_stays_usable(qemu: str) -> None:
    data = os.urandom(700_000)
    async with booted(qemu) as vm:
        await vm.agent.write_file("/tmp/file", data)
        count = "ls /proc/$(pidof qemu-ga)/fd | wc -l"
        before = (await vm.agent.run(["sh", "-c", count], check=True)).text
        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: vm.agent.read_file("/tmp/file"),
            lambda: vm.agent.write_file("/tmp/other", data),
            lambda: vm.agent.run(["sleep", "1"]),
            lambda: vm.agent.run(["sleep", "1"], input=data),
        ]
        for number in range(AGENT_CANCELS):
            with trio.move_on_after(random.uniform(0.02, 0.4)):
                await uses[number % 4]()
        assert await vm.agent.read_file("/tmp/file") == data
        assert (await vm.agent.run(["sh", "-c", count], check=True)).text == before
        assert (await vm.agent.run(["pidof", "sleep"])).status == 1


async def test_an_agent_that_is_not_there_is_known_at_once(qemu: str) -> None:
    async with booted(qemu) as vm:
        async with trio.open_nursery() as nursery:

            async def asking() -> None:
                with pytest.raises(AgentSilent, match="stopped before it answered"):
                    await vm.agent.run(["sleep", "1000"])

            nursery.start_soon(asking)
            await trio.sleep(0.2)
            # It stands still first, so that it has been asked when it ends.
            await vm.console.send_line("kill -STOP 1; killall -STOP qemu-ga; echo st''ands")
            await vm.console.expect("stands")
            await trio.sleep(0.5)
            await vm.console.send_line("killall -9 qemu-ga")
        with pytest.raises(AgentSilent, match="is not running there"):
            await vm.agent.ping()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.agent.wait_ready)
            await vm.console.send_line("kill -CONT 1; qemu-ga -d")
        assert (await vm.agent.run(["echo", "back"])).text == "back\n"


async def test_it_is_found_again_after_a_reset(qemu: str) -> None:
    async with booted(qemu) as vm:
        await vm.agent.write_file("/tmp/before", b"x")
        await vm.reset()
        await vm.agent.wait_ready()
        with pytest.raises(AgentRefused, match="No such file"):
            await vm.agent.read_file("/tmp/before")


async def test_the_machines_end_ends_what_is_under_way(qemu: str) -> None:
    async with booted(qemu) as vm:
        async with trio.open_nursery() as nursery:

            async def asking() -> None:
                with pytest.raises((MachineGone, AgentSilent)):
                    await vm.agent.run(["sleep", "1000"])

            nursery.start_soon(asking)
            await trio.sleep(0.1)
            await vm.quit()
        with pytest.raises(MachineGone):
            await vm.agent.ping()


async def test_a_machine_without_the_channel_says_what_to_add(qemu: str) -> None:
    spec = qmpkit.MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")
    async with qmpkit.running(spec, paused=True) as vm:
        with pytest.raises(qmpkit.SpecInvalid, match="add `agent = true`"):
            await vm.agent.ping()
