"""The command line as its user meets it: what is printed where, and the exit status."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import qmpkit
from qmpkit.cli import listing, main
from qmpkit.cli.talk import route_log
from qmpkit.errors import Fault, HostLacks, LaunchFailed, SpecInvalid
from qmpkit.spec.profile import profile_names


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class Command:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> Ran:
        status = main(argv)
        out, err = self._capsys.readouterr()
        return Ran(status, out, err)


@pytest.fixture
def qk(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def process(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qmpkit.cli", *argv],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_version(qk: Command) -> None:
    assert qk("--version") == (0, f"qmpkit {qmpkit.__version__}\n", "")


def test_help_names_commands_and_exit_statuses(qk: Command) -> None:
    ran = qk("--help")
    assert ran.status == 0
    for word in ("run ", "profiles ", "argv ", "qmp ", "completion ", "Exit status:", "--debug"):
        assert word in ran.out


def test_no_command_is_a_question_for_help(qk: Command) -> None:
    assert qk() == qk("--help")


@pytest.mark.parametrize("command", ["run", "profiles", "argv", "qmp", "completion", "image"])
def test_every_command_has_help_with_whole_paragraphs(qk: Command, command: str) -> None:
    ran = qk(command, "--help")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: qmpkit {command}")
    widths = [len(line) for line in ran.out.splitlines()]
    assert max(widths) <= 80


def test_profiles_as_a_table(qk: Command) -> None:
    ran = qk("profiles")
    lines = ran.out.splitlines()
    assert (ran.status, ran.err) == (0, "")
    assert lines[0].split() == ["NAME", "MACHINE", "ACCEL", "MEMORY", "CPUS", "DESCRIPTION"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert sorted(rows) == sorted(profile_names())
    assert rows["q35"][:4] == ["q35", "auto", "1GiB", "2"]
    assert rows["tiny"][:6] == ["q35", "auto", "256MiB", "1", "Small", "Linux"]


def test_profiles_as_json(qk: Command) -> None:
    ran = qk("profiles", "--json")
    rows = json.loads(ran.out)
    assert [row["name"] for row in rows] == list(profile_names())
    kinds = {
        "name": str,
        "machine": str,
        "accel": str,
        "memory": int,
        "cpus": int,
        "description": str,
    }
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == kinds
        assert row["description"], f"{row['name']} says nothing of itself"
        assert "\n" not in row["description"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "q53"], "there is no profile 'q53' (did you mean 'q35'?)"),
        (["argv", "./none.toml"], "none.toml: cannot be read: No such file or directory"),
        (["run", "q35", "--set", "memroy=1"], "memroy: unknown key (did you mean 'memory'?)"),
        (["run", "q35", "--set", "memory=1X"], "memory.size: '1X' has an unknown unit 'X'"),
        (["run", "q35", "--set", "memory"], "--set memory: write key=value, for example"),
        (["run", "q35", "--logs", "/proc/x/y"], "--logs: '/proc/x/y' cannot be made: "),
        (["qmp", "vm.sock"], "which command? For example: query-status"),
        (["qmp", "vm.sock", "cont", "id"], "arguments: 'id': write key=value"),
        (["rnu"], 'Unknown command "rnu". Did you mean "run"?'),
        (["run"], "parameter WHAT requires an argument. Try 'qmpkit run --help'."),
        (["run", "--hedless", "q35"], "Unknown option: --hedless. Did you mean --headless?"),
        (["run", "q35", "extra"], "extra"),
        (["run", "q35", "--powerdown-grace", "soon"], 'unable to convert "soon" into float'),
        (["run", "q35", "--powerdown-grace=-1"], "Must be >= 0"),
        (["completion", "tcsh"], 'Choose from: "bash", "zsh", "fish"'),
    ],
)
def test_a_mistake_is_one_clear_line(qk: Command, argv: list[str], message: str) -> None:
    ran = qk(*argv)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_several_mistakes_are_a_list(qk: Command) -> None:
    ran = qk("argv", "q35", "--set", "memroy=1", "--set", "cpu.cors=3")
    assert ran.status == 2
    first, *faults = ran.err.splitlines()
    assert first == "error: q35 with --set: 2 faults:"
    assert sorted(faults) == [
        "  - cpu.cors: unknown key (did you mean 'cores'?)",
        "  - memroy: unknown key (did you mean 'memory'?)",
    ]


def test_a_file_with_a_fault_is_named(qk: Command, tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_text('schema = 1\nname = "web"\nmemroy = 1\n')
    ran = qk("run", str(path))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"error: {path}: memroy: unknown key (did you mean 'memory'?)\n"


def test_what_the_host_lacks_is_told_with_the_cure(qk: Command) -> None:
    ran = qk("argv", "q35", "--set", "qemu=/nonexistent/qemu")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err.startswith("error: machine 'vm': '/nonexistent/qemu' does not exist. Cure: ")


def test_an_absent_monitor(qk: Command, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.sock")
    ran = qk("qmp", path, "query-status")
    assert (ran.status, ran.out) == (4, "")
    assert ran.err.startswith(f"error: no QMP monitor at {path!r}: No such file or directory. ")


Patch = pytest.MonkeyPatch


def failing(monkeypatch: Patch, error: BaseException) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(listing, "list_profiles", fail)


def test_a_bug_shows_where_it_is(qk: Command, monkeypatch: Patch) -> None:
    failing(monkeypatch, KeyError("oops"))
    ran = qk("profiles")
    assert (ran.status, ran.out) == (1, "")
    assert "Traceback" in ran.err
    assert "KeyError: 'oops'" in ran.err
    assert ran.err.endswith(
        "error: this is a bug in qmpkit, please report it with the lines above\n"
    )


def test_ctrl_c_is_130(qk: Command, monkeypatch: Patch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert qk("profiles") == (130, "", "error: interrupted\n")


def test_a_group_tells_each(qk: Command, monkeypatch: Patch) -> None:
    faults = SpecInvalid([Fault("name", "is missing")])
    failing(monkeypatch, ExceptionGroup("both", [faults, HostLacks("no tun", "modprobe tun")]))
    expected = "error: name: is missing\nerror: no tun. Cure: modprobe tun\n"
    assert qk("profiles") == (3, "", expected)


def test_a_failed_launch_spares_us_the_command(qk: Command, monkeypatch: Patch) -> None:
    failing(monkeypatch, LaunchFailed("vm", ["qemu", "-x"], "exit status 1", "-x: invalid\n"))
    ran = qk("profiles")
    assert ran.status == 1
    assert ran.err.splitlines() == [
        "error: machine 'vm' did not start: QEMU ended with exit status 1.",
        "-x: invalid",
        "(`--debug` shows QEMU's command.)",
    ]


@pytest.mark.parametrize("argv", [["--debug", "profiles"], ["profiles", "--debug"]])
def test_debug_shows_tracebacks_and_the_command(
    qk: Command, monkeypatch: Patch, argv: list[str]
) -> None:
    failing(monkeypatch, LaunchFailed("vm", ["qemu", "-x"], "exit status 1", "-x: invalid\n"))
    ran = qk(*argv)
    assert ran.status == 1
    assert "Traceback" in ran.err
    assert "error: machine 'vm' did not start" in ran.err
    assert "Command: qemu -x\n" in ran.err


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(qk: Command, monkeypatch: Patch, value: str, *, shown: bool) -> None:
    monkeypatch.setenv("QMPKIT_DEBUG", value)
    failing(monkeypatch, HostLacks("no tun"))
    ran = qk("profiles")
    assert ("Traceback" in ran.err) is shown


def test_a_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    route_log(debug=False)
    log = logging.getLogger("qmpkit.host")
    log.warning("machine %r: slow", "vm")
    log.warning("machine %r: slow", "vm")
    log.info("chatter")
    assert capsys.readouterr() == ("", "warning: machine 'vm': slow\n")


def test_debug_shows_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    route_log(debug=True)
    logging.getLogger("qmpkit.host").info("chatter")
    assert capsys.readouterr() == ("", "qmpkit.host: chatter\n")


def test_output_that_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "qmpkit.cli", "profiles"],
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_where_they_are_wanted(env: dict[str, str], *, coloured: bool) -> None:
    master, slave = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "qmpkit.cli", "profiles", "--json"],
        stdout=slave,
        stdin=slave,
        env={**base, "TERM": "xterm-256color", **env},
    ) as child:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
    os.close(master)
    assert child.returncode == 0
    assert (b"\x1b[32m" in shown) is coloured
    assert b"microvm" in shown


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: the other side of the terminal is closed
        return b""


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['cyclopts'] = None; from qmpkit.cli import main; sys.exit(main())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "profiles"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr == (
        "error: the qmpkit command needs cyclopts, which is not installed. "
        "Cure: pip install 'qmpkit[cli]'\n"
    )


def test_python_dash_m() -> None:
    ran = process("--version")
    assert (ran.returncode, ran.stdout) == (0, f"qmpkit {qmpkit.__version__}\n")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from qmpkit.cli import main; main(['--help']);"
        "print([m for m in ('trio', 'asyncio', 'cattrs', 'qemu', 'markdown_it') "
        "if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert ran.stderr == "[]\n"
