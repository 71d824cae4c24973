"""The command on real QEMUs, at a real (pseudo) terminal and away from one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.live.commands import COMMAND, Terminal, ask, on, piped, qmp, rest, said, terminal
from tests.sizes import NEWEST

pytestmark = pytest.mark.live

ESCAPE, CTRL_C = b"\x1d", b"\x03"


def no_guest(qemu: str) -> list[str]:
    """Nothing to boot: up at once, and deaf to the power button."""
    return ["q35", *on(qemu, "memory=32MiB", "name=bare")]


def modes(fd: int) -> int:
    return int(termios.tcgetattr(fd)[3]) & (termios.ECHO | termios.ICANON | termios.ISIG)


@pytest.mark.qemus(*NEWEST)
async def test_a_person_at_the_console(qemu: str, tmp_path: Path) -> None:
    async with terminal("run", "tiny", *on(qemu), f"--logs={tmp_path}") as person:
        await person.expect("tiny: this is its console; Ctrl-] leaves it")
        await person.expect("tiny# ")
        # Ctrl-C is the guest's while its console has the terminal.
        await person.type(b"sh -c 'echo asleep-$((1 + 1)); exec sleep 100'\r")
        await person.expect("asleep-2")
        await person.type(CTRL_C)
        await person.expect("tiny# ")
        await person.type(b"echo said-$((40 + 2))\r")
        await person.expect("said-42")
        await person.type(ESCAPE)
        await person.expect("Ctrl-C: stop; Enter: console")
        await person.type(b"\n")
        await _back_in_the_guest(person)
        await person.type(ESCAPE)
        await person.expect("Ctrl-C: stop; Enter: console")
        await person.type(CTRL_C)
        await person.expect("asking the guest to power down, within 30 s; Ctrl-C again ends it")
        await person.expect("tiny: the guest shut itself down after")
        assert await person.process.wait() == 0
        assert modes(person.master) == termios.ECHO | termios.ICANON | termios.ISIG
    assert "said-42" in (tmp_path / "serial0.log").read_text()


async def _back_in_the_guest(person: Terminal) -> None:
    # The terminal is the guest's again once it is raw, which nothing announces.
    while modes(person.master) & termios.ICANON:  # noqa: ASYNC110
        await trio.sleep(0.01)
    await person.type(b"echo again-$((1 + 1))\r")
    await person.expect("again-2")


async def test_a_closed_terminal_is_one_request_to_stop(qemu: str, tmp_path: Path) -> None:
    log = tmp_path / "talk"
    grace = "--powerdown-grace=0.3"
    with log.open("wb") as talk:
        async with terminal("run", *no_guest(qemu), grace, stderr=talk.fileno()) as person:
            while b"this is its console" not in log.read_bytes():  # noqa: ASYNC110
                await trio.sleep(0.02)
            os.close(person.master)
            person.master = -1
            assert await person.process.wait() == 0
    told = log.read_text()
    # Both SIGHUP and the console's end tell of it: the second must not cut the grace short.
    assert "bare: the guest has not powered down within 0.3 s; ending it" in told
    assert "bare: ending QEMU" not in told
    assert "bare: it was stopped on request after" in told


async def test_headless_tells_changes_and_reports_as_json(qemu: str, tmp_path: Path) -> None:
    tools = tmp_path / "tools.sock"
    options = ["--paused", "--tools-socket", str(tools), "--json"]
    async with piped("run", *no_guest(qemu), *options) as run:
        heard = await said(run, "lets it run")
        assert "bare: pc-q35-" in heard
        assert f"bare: its monitor for other programs: qmpkit qmp {tools} …\n" in heard
        assert ask(tools, "query-status")["status"] == "prelaunch"
        ask(tools, "cont")
        await said(run, "bare: running\n")
        ask(tools, "stop")
        await said(run, "bare: paused\n")
        run.send_signal(signal.SIGTERM)
        assert await said(run, "it was stopped on request after")
        out = await rest(run.stdout)
        assert await run.wait() == 0
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report.pop("uptime") > 0
    assert report == {
        "machine": "bare",
        "cause": "host quit",
        "expected": True,
        "reason": "host-qmp-quit",
        "status": {"code": 0, "signal": None},
        "panic": None,
        "stderr_tail": "",
        "exit_status": 0,
    }
    assert not tools.exists()


async def test_a_deaf_guest_is_ended_after_the_grace(qemu: str) -> None:
    async with piped("run", *no_guest(qemu), "--headless", "--powerdown-grace=0.3") as run:
        await said(run, "bare: running\n")
        run.send_signal(signal.SIGINT)
        heard = await said(run, "it was stopped on request after")
        assert "bare: asking the guest to power down, within 0.3 s" in heard
        assert "warning: bare: the guest has not powered down within 0.3 s; ending it" in heard
        assert await run.wait() == 0


async def test_a_second_ctrl_c_ends_it_at_once(qemu: str) -> None:
    async with terminal("run", *no_guest(qemu), "--headless") as person:
        await person.expect("running")
        await person.type(CTRL_C)
        await person.expect("asking the guest to power down")
        asked = trio.current_time()
        await person.type(CTRL_C)
        await person.expect("bare: ending QEMU")
        await person.expect("bare: it was stopped on request after")
        assert await person.process.wait() == 0
        assert trio.current_time() - asked < 10, "the grace is 30 s"


async def test_a_killed_qemu_is_a_failure(qemu: str) -> None:
    async with piped("run", *no_guest(qemu), "--headless") as run:
        heard = await said(run, "bare: running\n")
        pid = int(heard.partition("pid ")[2].split()[0])
        os.kill(pid, signal.SIGKILL)
        await said(run, "error: bare: QEMU was killed from outside (killed by SIGKILL) after")
        assert await run.wait() == 1


async def test_a_start_that_hangs_can_be_interrupted(tmp_path: Path) -> None:
    mute = tmp_path / "qemu-system-x86_64"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o755)
    async with piped("run", *no_guest(str(mute))) as run:
        await said(run, "bare: starting …\n")
        run.send_signal(signal.SIGINT)
        await said(run, "error: bare: interrupted while it was starting\n")
        assert await run.wait() == 130


async def test_a_refused_start_says_why(qemu: str) -> None:
    ran = await trio.run_process(
        [*COMMAND, "run", *no_guest(qemu), '--set=extra_args=["-nonsense"]'],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    lines = ran.stderr.decode().splitlines()
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert lines[0] == "error: machine 'bare' did not start: QEMU ended with exit status 1."
    assert lines[1].endswith("-nonsense: invalid option")
    assert lines[2:] == ["(`--debug` shows QEMU's command.)"]


async def test_the_printed_command_can_be_pasted(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's a place"
    folder.mkdir()
    options = [*no_guest(qemu), "--paused", "--sockets", str(folder)]
    ran = await trio.run_process([*COMMAND, "argv", *options], capture_stdout=True)
    listed = await trio.run_process([*COMMAND, "argv", *options, "--json"], capture_stdout=True)
    text = ran.stdout.decode()
    argv = json.loads(listed.stdout)
    assert shlex.split(text.replace("\\\n", "")) == argv
    assert argv[0] == qemu
    shell = await trio.lowlevel.open_process(["bash", "-c", f"exec {text}"])
    monitor = folder / "bare-qmp.sock"
    try:
        while not monitor.exists():  # a plain QEMU announces nothing
            assert shell.poll() is None
            await trio.sleep(0.02)
        assert ask(monitor, "query-status")["status"] == "prelaunch"
        ask(monitor, "quit")
        assert await shell.wait() == 0
    finally:
        if shell.returncode is None:
            shell.kill()


# `qmpkit qmp` on a QEMU that is not ours


@contextmanager
def stranger(qemu: str, path: Path) -> Iterator[Path]:
    """A QEMU that somebody else started, with its monitor at *path*."""
    argv = [qemu, "-M", "none", "-S", "-nodefaults", "-display", "none"]
    argv += ["-qmp", f"unix:{path},server=on,wait=off", "-daemonize"]
    pidfile = path.with_suffix(".pid")
    # -daemonize returns when the monitor listens.
    subprocess.run([*argv, "-pidfile", str(pidfile)], check=True, timeout=20)
    pid = int(pidfile.read_text())
    try:
        yield path
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def monitor(qemu: str, tmp_path: Path) -> Iterator[Path]:
    with stranger(qemu, tmp_path / "vm.sock") as path:
        yield path


def test_a_reply_is_json_to_read_and_json_to_parse(monitor: Path) -> None:
    pretty = qmp(monitor, "query-status")
    assert (pretty.returncode, pretty.stderr) == (0, "")
    assert pretty.stdout.startswith('{\n  "status": "prelaunch"')
    assert json.loads(pretty.stdout) == ask(monitor, "query-status")


def test_arguments_reach_qemu(monitor: Path) -> None:
    node = ["blockdev-add", "driver=null-co", "node-name=n0", "size=4096", "cache.direct=true"]
    assert ask(monitor, *node) == {}
    [found] = ask(monitor, "query-named-block-nodes")
    assert (found["node-name"], found["image"]["virtual-size"]) == ("n0", 4096)
    assert found["cache"]["direct"] is True
    assert ask(monitor, "blockdev-del", '{"node-name": "n0"}') == {}


def test_a_text_is_printed_as_it_is(monitor: Path) -> None:
    words = ["human-monitor-command", "command-line=info status"]
    assert qmp(monitor, *words).stdout.startswith("VM status: paused")
    assert ask(monitor, *words).startswith("VM status: paused")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query-statu"], "[CommandNotFound] (did you mean 'query-status'?)\n"),
        (["zzz"], "The command zzz has not been found [CommandNotFound]\n"),
        (["blockdev-del", "node-name=x"], "refused blockdev-del: Failed to find node"),
        (["query-status", "x=1"], "refused query-status: "),
    ],
)
def test_a_refusal_is_one_line(monitor: Path, words: list[str], message: str) -> None:
    ran = qmp(monitor, *words)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: machine {str(monitor)!r} refused {words[0]}: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_quit_ends_the_other_qemu(monitor: Path) -> None:
    assert ask(monitor, "quit") == {}


async def test_events_are_followed_and_the_monitor_is_busy_meanwhile(monitor: Path) -> None:
    async with piped("qmp", str(monitor), "cont", "--events") as follower:
        heard = await said(follower, "following events; Ctrl-C ends it\n")
        assert heard == "following events; Ctrl-C ends it\n"
        busy = await trio.to_thread.run_sync(qmp, monitor, "query-status")
        assert (busy.returncode, busy.stdout) == (4, "")
        assert busy.stderr.startswith(
            f"error: machine {str(monitor)!r}: the QMP monitor is held by another client. Cure: "
        )
        assert busy.stderr.count("\n") == 1
        follower.send_signal(signal.SIGINT)
        reply, *events = (await rest(follower.stdout)).splitlines()
        assert await follower.wait() == 0
    assert reply == "{}"
    assert [json.loads(line)["event"] for line in events] == ["RESUME"]
    assert json.loads(events[0]).keys() == {"time", "event", "data"}


async def test_a_qemu_that_goes_while_it_is_followed(monitor: Path) -> None:
    async with piped("qmp", str(monitor), "--events") as follower:
        await said(follower, "following events")
        pid = int(monitor.with_suffix(".pid").read_text())
        os.kill(pid, signal.SIGKILL)
        heard = await said(follower, "the monitor connection is gone")
        assert "Traceback" not in heard
        assert await follower.wait() == 4
