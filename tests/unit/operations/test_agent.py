"""The guest agent: programs, files, information, and what happens when nobody answers."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from ipaddress import ip_interface
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from qmpkit.errors import AgentSilent, GuestRefused, MachineGone
from qmpkit.operations import agent_files, agent_run
from qmpkit.operations.agent import Agent, Completed, GuestInterface, OsInfo
from qmpkit.operations.errors import AgentRefused, GuestCommandFailed
from qmpkit.qmp.errors import MonitorGarbled
from qmpkit.testing.fake import HangUp, Late, Lost, Refuse
from tests.unit.operations.guest import Guest, agent_alone, agent_of_a_machine

# --- programs


async def test_run_gives_output_and_status(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        done = await agent.run(["cat", "-", "x y"], input=b"\xffdata")
        assert done == Completed(("cat", "-", "x y"), 0, None, b"\xffdata", b"")
        assert (done.ok, done.text, done.ending) == (True, "\ufffddata", "exit status 0")
        (program,) = guest.programs.values()
        assert program.request["arg"] == ["-", "x y"]
        assert program.request["capture-output"] is True
        assert "env" not in program.request


async def test_run_with_text_input_and_environment(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        assert (await agent.run(["cat"], input="grüß", env={"A": "b c", "D": ""})).text == "grüß"
        assert guest.programs[100].request["env"] == ["A=b c", "D="]
        assert "input-data" not in (await started(agent, guest, ["cat"]))


async def started(agent: Agent, guest: Guest, argv: list[str]) -> dict[str, Any]:
    await agent.run(argv)
    return list(guest.programs.values())[-1].request


async def test_a_program_that_fails(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, _):
        done = await agent.run(["fail"])
        assert (done.ok, done.status, done.error_text) == (False, 3, "it is broken\n")
        crashed = await agent.run(["crash"])
        assert (crashed.status, crashed.signal, crashed.ending) == (None, 11, "signal 11")
        with pytest.raises(GuestCommandFailed) as caught:
            await agent.run(["fail", "a b"], check=True)
        assert caught.value.completed.status == 3
        assert str(caught.value) == (
            "in the guest of machine 'web', fail 'a b' ended with exit status 3: it is broken"
        )
        assert (await agent.run(["cat"], check=True)).ok


async def test_truncated_output_is_told(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, _):
        assert (await agent.run(["flood"])).truncated
        assert not (await agent.run(["cat"])).truncated


async def test_a_program_that_does_not_exist() -> None:
    async with agent_alone() as (agent, _):
        with pytest.raises(AgentRefused, match=r"refused to run 'nope': .* “nope”") as caught:
            await agent.run(["nope"])
        assert caught.value.error_class == "GenericError"
        assert isinstance(caught.value, GuestRefused)


async def test_wrong_arguments_are_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_run, "INPUT_LIMIT", 10)
    async with agent_alone() as (agent, guest):
        with pytest.raises(TypeError, match="list of the program"):
            await agent.run("uname -r")
        with pytest.raises(TypeError, match="list of the program"):
            await agent.run([])
        with pytest.raises(ValueError, match="at most 10; use write_file"):
            await agent.run(["cat"], input=b"x" * 11)
        assert guest.fake.calls == []


async def test_words_that_no_agent_can_be_told_end_neither_the_link_nor_the_machine() -> None:
    async with agent_of_a_machine() as (agent, guest, _):
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: agent.run(["cat", "\udcff"]),
            lambda: agent.run(["cat"], env={"A": "\udcff"}),
            lambda: agent.read_file("/\udcff"),
            lambda: agent.write_file("/\udcff", b""),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="not UTF-8"):
                await call()
        assert (await agent.run(["cat"], input=b"alive")).stdout == b"alive"
        assert guest.handles == {}


async def test_status_is_asked_ever_less_often(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        with trio.move_on_after(30):
            await agent.run(["sleep"], on_cancel="leave")
        asked = sum(call.command == "guest-exec-status" for call in guest.fake.calls)
        assert 300 <= asked <= 320


async def test_cancelled_run_kills_the_program(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        with trio.move_on_after(10) as scope:
            await agent.run(["sleep"])
        assert scope.cancelled_caught
        assert trio.current_time() < 11
        assert guest.programs[101].request["arg"] == ["-KILL", "100"]
        # Both were asked for until they had ended: the agent keeps nothing of them.
        paths = {program.path for program in guest.programs.values()}
        assert paths == {"(sleep has ended)", "(kill has ended)"}


async def test_cancelled_run_with_much_input_has_it_read(autojump_clock: MockClock) -> None:
    """Else the real agent would be busy with it for ever."""
    async with agent_alone() as (agent, guest):
        with trio.move_on_after(10):
            await agent.run(["sleep"], input=bytes(100_000))
        helpers = [program.request for program in guest.programs.values()][1:]
        assert [helper["path"] for helper in helpers] == ["cat", "kill"]
        assert helpers[0]["arg"] == ["/proc/100/fd/0"]
        assert all("ended" in program.path for program in guest.programs.values())


async def test_cancelled_run_may_leave_it(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        with trio.move_on_after(10):
            await agent.run(["sleep"], on_cancel="leave")
        assert [program.path for program in guest.programs.values()] == ["sleep"]


async def test_cancelled_run_in_a_guest_that_hangs_is_bounded(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.misbehave("guest-exec-status", Lost())
        guest.fake.misbehave("guest-sync-delimited", Late(0), Lost(), Lost())
        with trio.move_on_after(10):
            await agent.run(["sleep"])
        assert 11 <= trio.current_time() < 11.1


async def test_several_programs_at_once(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, _):
        got: list[str] = []

        async def echo(text: str) -> None:
            got.append((await agent.run(["cat"], input=text)).text)

        async with trio.open_nursery() as nursery:
            for text in "abc":
                nursery.start_soon(echo, text)
        assert sorted(got) == ["a", "b", "c"]


# --- files


@pytest.mark.parametrize("size", [0, 1, agent_files._CHUNK, 3 * agent_files._CHUNK + 7])
async def test_a_file_there_and_back(size: int) -> None:
    data = os.urandom(size)
    async with agent_alone() as (agent, guest):
        guest.largest_write = 100_000  # the guest may take less than it was given
        await agent.write_file("/tmp/a b", data)
        assert guest.files == {"/tmp/a b": data}
        assert await agent.read_file("/tmp/a b", limit=size) == data
        assert guest.largest_read <= agent_files._CHUNK
        assert guest.handles == {}


async def test_append_and_text() -> None:
    async with agent_alone() as (agent, guest):
        await agent.write_file("/x", "ä")
        await agent.write_file("/x", b"b", append=True)
        assert guest.files["/x"] == "äb".encode()


async def test_a_file_that_is_not_there_or_too_long() -> None:
    async with agent_alone() as (agent, guest):
        with pytest.raises(AgentRefused, match=r"refused to read '/nope': .*No such file"):
            await agent.read_file("/nope")
        guest.files["/zero"] = bytes(1000)
        with pytest.raises(AgentRefused, match="it is longer than 999 bytes"):
            await agent.read_file("/zero", limit=999)
        assert guest.handles == {}


async def test_a_disk_that_is_full_at_the_close_is_told() -> None:
    async with agent_alone() as (agent, guest):

        def full(request: dict[str, Any]) -> None:
            guest.do_file_close(request)
            raise Refuse("failed to close handle: No space left on device")

        guest.fake.on("guest-file-close", full)
        with pytest.raises(AgentRefused, match="refused to write '/x': failed to close handle"):
            await agent.write_file("/x", b"data")


async def test_a_guest_that_takes_nothing_is_no_endless_loop() -> None:
    async with agent_alone() as (agent, guest):
        guest.largest_write = 0
        with pytest.raises(MonitorGarbled, match="guest-file-write is malformed"):
            await agent.write_file("/x", b"data")
        assert guest.handles == {}


# --- nobody answers


async def test_without_an_agent_every_call_fails_at_once() -> None:
    async with agent_of_a_machine(listening=False) as (agent, guest, port):
        with pytest.raises(AgentSilent, match=r"refused to run 'ls': the guest agent is not"):
            await agent.run(["ls"])
        assert guest.fake.calls == []
        port.listening = True  # its event has not come (yet): QEMU is asked once more
        await agent.ping()


async def test_an_agent_that_stops_while_it_is_asked() -> None:
    async with agent_of_a_machine() as (agent, guest, port):
        guest.fake.misbehave("guest-ping", Lost())
        async with trio.open_nursery() as nursery:

            async def asking() -> None:
                with pytest.raises(AgentSilent, match="stopped before it answered"):
                    await agent.ping()

            nursery.start_soon(asking)
            await guest.fake.called("guest-ping")
            port.turn(listening=False)
        port.turn(listening=True)
        await agent.ping()


async def test_wait_ready_waits_for_the_boot_without_asking(autojump_clock: MockClock) -> None:
    async with agent_of_a_machine(listening=False) as (agent, guest, port):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.wait_ready)
            await trio.sleep(20)
            assert guest.fake.calls == []
            assert sum(c.command == "query-chardev" for c in port.qemu.calls) == 1
            guest.fake.misbehave("guest-ping", Lost())
            port.turn(listening=True)
            await guest.fake.called("guest-ping")
            port.turn(listening=False)  # the guest reboots just then
            await trio.sleep(20)
            port.turn(listening=True)
        assert [c.command for c in guest.fake.calls].count("guest-ping") == 2


async def test_wait_ready_without_a_monitor_asks_again(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.misbehave("guest-sync-delimited", Lost(), Lost())
        await agent.wait_ready()
        assert 10 <= trio.current_time() < 11


async def test_events_of_other_ports_are_not_ours() -> None:
    async with agent_of_a_machine() as (agent, _, port):
        port.qemu.emit("VSERPORT_CHANGE", {"id": "other0", "open": False})
        await trio.testing.wait_all_tasks_blocked()
        await agent.ping()


@pytest.mark.parametrize("noticed", [False, True])
async def test_when_the_monitor_is_lost_the_agent_is_still_asked(*, noticed: bool) -> None:
    async with agent_of_a_machine(listening=False) as (agent, _, port):
        await trio.testing.wait_all_tasks_blocked()
        port.qemu.hang_up()
        if noticed:
            await trio.testing.wait_all_tasks_blocked()
        await agent.ping()
        await agent.wait_ready()


async def test_the_machines_end() -> None:
    async with agent_of_a_machine() as (agent, guest, _):
        guest.fake.misbehave("guest-ping", HangUp())
        with pytest.raises(
            MachineGone, match="'web' has ended, asking the guest to answer a ping is"
        ):
            await agent.ping()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(MachineGone):
            await agent.run(["ls"])
        with pytest.raises(MachineGone):
            await agent.wait_ready()


async def test_the_machines_end_while_its_agent_is_awaited() -> None:
    async def waiting(agent: Agent) -> None:
        with pytest.raises(MachineGone, match="asking the guest to get ready is not possible"):
            await agent.wait_ready()

    async with (
        agent_of_a_machine(listening=False) as (agent, guest, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(waiting, agent)
        await trio.testing.wait_all_tasks_blocked()
        guest.fake.hang_up()


# --- shutdown and information


async def test_shutdown_returns_when_the_agent_has_ended(autojump_clock: MockClock) -> None:
    async with agent_of_a_machine() as (agent, guest, port):
        guest.fake.on("guest-shutdown", {})
        guest.fake.misbehave("guest-shutdown", Lost())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.shutdown)
            await guest.fake.called("guest-shutdown")
            port.turn(listening=False)
        assert trio.current_time() < 0.1
        assert guest.fake.calls[-1].arguments == {"mode": "powerdown"}


async def test_shutdown_of_a_guest_that_says_nothing(autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.on("guest-shutdown", {})
        guest.fake.misbehave("guest-shutdown", Lost(), HangUp())
        await agent.shutdown("reboot")
        assert guest.fake.calls[-1].arguments == {"mode": "reboot"}
        assert trio.current_time() == pytest.approx(3, abs=0.01)
        await agent.shutdown()  # the machine ends
        assert trio.current_time() < 4


async def test_shutdown_that_is_refused() -> None:
    def refuse(_: object) -> None:
        raise Refuse("child process has failed to shutdown")

    async with agent_of_a_machine() as (agent, guest, port):
        guest.fake.on("guest-shutdown", refuse)
        with pytest.raises(AgentRefused, match="refused to power down: child process has failed"):
            await agent.shutdown()
        port.turn(listening=False)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AgentSilent, match="is not running there"):
            await agent.shutdown()


async def test_information() -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.on("guest-get-host-name", {"host-name": "tiny"})
        guest.fake.on("guest-get-osinfo", {"id": "debian", "kernel-release": "6.1.0", "new": 1})
        lo = {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]}
        eth = {"name": "eth0", "hardware-address": "52:54:00:00:00:01"}
        guest.fake.on("guest-network-get-interfaces", [lo, eth])
        assert await agent.host_name() == "tiny"
        assert await agent.os_info() == OsInfo(id="debian", kernel_release="6.1.0")
        assert await agent.interfaces() == (
            GuestInterface("lo", "", (ip_interface("127.0.0.1/8"),)),
            GuestInterface("eth0", "52:54:00:00:00:01", ()),
        )
        assert await agent.execute("guest-info") == {"version": "7.2.0", "supported_commands": []}


@pytest.mark.parametrize("reply", [None, 7, [], {"host-name": None}, "x"])
async def test_a_guest_that_answers_nonsense(reply: object, autojump_clock: MockClock) -> None:
    async with agent_alone() as (agent, guest):
        guest.fake.on("guest-get-host-name", lambda _: reply)
        guest.fake.on("guest-network-get-interfaces", [{"name": "x", "ip-addresses": [7]}])
        guest.fake.on("guest-exec-status", {"exited": True})
        if reply != {"host-name": None}:
            with pytest.raises(MonitorGarbled, match="guest-get-host-name is malformed"):
                await agent.host_name()
        with pytest.raises(MonitorGarbled, match="interfaces is malformed"):
            await agent.interfaces()
        with pytest.raises(MonitorGarbled, match="guest-exec-status is malformed"):
            await agent.run(["cat"])
        await agent.ping()
