"""Chaos around a farm and its daemon: policies hold, and nobody pays for what befalls another.

Each fault is told once, by its machine's name; and when it is over the farm is as declared.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import qmpkit
from qmpkit import MachineSpec
from qmpkit.cli.daemon import Daemon, find_daemon
from qmpkit.cli.farm_jobs import followed
from qmpkit.process.entries import add
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.commands import COMMAND
from tests.live.counting import counted
from tests.live.kept import Places, end_all, lab
from tests.live.small_disk import SmallDisk, small_disk
from tests.sizes import CHAOS_SECONDS, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

PATIENCE = 60.0  # seconds for what follows a fault

# Each is there for one fault; a `period` is short, so that the next round finds a clean slate.
FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
memory = "16MiB"
restart = {{ policy = "on-failure", delay = 0.3, jitter = 0, period = 2 }}
# It never rests: without nice it would take a processor from all that is waited for.
[machines.counting]
profile = "kvm-tiny"
launcher = ["nice", "-n", "19"]
[machines.idle]
[machines.killed]
[machines.left]
restart = "never"
[machines.frozen]
health = {{ checks = ["qmp"], interval = 1, timeout = 3, retries = 2, start_period = 0 }}
[machines.thawed.health]
checks = ["qmp"]
interval = 1
timeout = 3
retries = 2
start_period = 0
restart = false
[machines.starved]
restart = {{ policy = "on-failure", delay = 3, factor = 1, jitter = 0, period = 2 }}
[machines.cut]
[machines.half-cut]
[machines.lost]
"""
BYSTANDERS = ("counting", "idle")

Told = list[dict[str, Any]]


class Chaos:
    """The farm as it is seen from outside: its daemon, its events, its processes."""

    def __init__(self, folder: Path, places: Places, disk: SmallDisk) -> None:
        self.folder = folder
        self.places = places
        self.disk = disk
        self.seen = -1

    @property
    def daemon(self) -> Daemon:
        return find_daemon("lab")

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.daemon.get("machines")["machines"]}

    def pid(self, name: str) -> int:
        pid: int = self.rows()[name]["pid"]
        return pid

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def sockets(self, name: str) -> Path:
        return self.places.runtime / "lab" / name

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def up(self) -> dict[str, str]:
        """What it takes to have all of the farm: by machine."""
        told = json.loads(self.command("up", "farm.toml", "--json"))
        return {machine["name"]: machine["did"] for machine in told["machines"]}

    def follow(self, *, until: Callable[[Told], bool]) -> Told:
        """What is told from here on, up to what is waited for."""
        late, told = time.monotonic() + PATIENCE, []
        for kind, data in self.daemon.events("events", since=self.seen, beat=300):
            if kind == "happening":
                told.append(data)
                self.seen = data["sequence"]
            if until(told):
                return told
            assert time.monotonic() < late, [(it["machine"], it["state"]) for it in told]
        pytest.fail(f"the events ended: {told}")

    def over(self, told: Told, *names: str) -> bool:
        """Whether these have come back: each runs, after it had been told of."""
        return all(_states(told, name)[-1:] in (["running"], ["healthy"]) for name in names)


def _states(told: Told, name: str) -> list[str]:
    return [it["state"] for it in told if it["machine"] == name]


def _once(told: Told, name: str, state: str, cause: str) -> bool:
    """Whether it is told once that the machine is so, and for that reason."""
    causes = [it["cause"] for it in told if (it["machine"], it["state"]) == (name, state)]
    assert len(causes) <= 1, causes
    return len(causes) == 1 and cause in causes[0]


def _named(told: Told) -> set[str]:
    return {it["machine"] for it in told}


@pytest.fixture
def disk(places: Places) -> Iterator[SmallDisk]:
    with small_disk(places.runtime) as disk:
        yield disk


@pytest.fixture
def chaos(tmp_path: Path, qemu: str, places: Places, disk: SmallDisk) -> Iterator[Chaos]:
    guests.build_kvm_tiny()
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=qemu))
    made = Chaos(folder, places, disk)
    yield made
    os.kill(_daemon_pid(places), signal.SIGKILL)


def _daemon_pid(places: Places) -> int:
    return int((places.state / "lab" / "lock").read_text())


def test_chaos(chaos: Chaos) -> None:
    chaos.up()
    names = set(chaos.rows())
    before = {name: chaos.pid(name) for name in BYSTANDERS}
    count = trio.run(_count, chaos.sockets("counting"))
    chaos.follow(until=lambda told: chaos.over(told, *names))
    begun = time.monotonic()
    while True:
        _killed_and_frozen(chaos)
        _full_disk(chaos)
        _cut_off(chaos)
        rows = chaos.rows()
        assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(names, "running")
        assert sorted(chaos.places.qemus()) == sorted(row["pid"] for row in rows.values())
        assert {name: rows[name]["pid"] for name in BYSTANDERS} == before
        count, earlier = trio.run(_count, chaos.sockets("counting")), count
        assert count > earlier
        if time.monotonic() - begun > CHAOS_SECONDS:
            break
    chaos.command("down", "--grace", "0")
    assert chaos.places.qemus() == []


def _killed_and_frozen(chaos: Chaos) -> None:
    """QEMUs that are killed or stand still: by their policies replaced, or left."""
    thawed = chaos.pid("thawed")
    for name in ("killed", "left"):
        chaos.signal(name, signal.SIGKILL)
    for name in ("frozen", "thawed"):
        chaos.signal(name, signal.SIGSTOP)
    told = chaos.follow(until=lambda told: "unhealthy" in _states(told, "thawed"))
    chaos.signal("thawed", signal.SIGCONT)

    def over(more: Told) -> bool:
        all_ = told + more
        return (
            chaos.over(all_, "killed", "thawed", "frozen")
            and "gone" in _states(all_, "left")
            and "gone" in _states(all_, "frozen")
        )

    told += chaos.follow(until=over)
    for name in ("killed", "left"):
        assert _once(told, name, "gone", "QEMU ")  # was killed, or vanished
    assert _states(told, "left") == ["gone"]  # its policy is never
    for name in ("frozen", "thawed"):
        assert _once(told, name, "unhealthy", "qmp: no answer within 3 s")
    assert _states(told, "thawed")[-2:] == ["unhealthy", "healthy"]
    assert chaos.pid("thawed") == thawed
    assert _named(told) == {"killed", "left", "frozen", "thawed"}
    job = chaos.daemon.post("machines", "left", "start")["job"]
    followed(chaos.daemon, job, "starting", quiet=True)
    told = chaos.follow(until=lambda told: chaos.over(told, "left"))
    assert _named(told) <= {"left", "frozen"}  # which is healthy when it has been asked


def _full_disk(chaos: Chaos) -> None:
    """Where the sockets are there is no room: what runs runs on, what starts starts later."""
    chaos.signal("starved", signal.SIGKILL)
    told = chaos.follow(until=lambda told: "restarting" in _states(told, "starved"))
    chaos.disk.fill()  # now: the sockets it had have made room for others
    try:
        why = "it did not start: cannot make the directory for sockets"
        told += chaos.follow(until=lambda told: any(why in it["cause"] for it in told))
    finally:
        chaos.disk.free()
    told += chaos.follow(until=lambda told: chaos.over(told, "starved"))
    assert _once(told, "starved", "gone", "QEMU ")
    assert _named(told) - {"frozen"} == {"starved"}


def _cut_off(chaos: Chaos) -> None:
    """Sockets and a record are gone, and the daemon is told to end while it is ending."""
    pids = {name: chaos.pid(name) for name in ("cut", "half-cut", "lost")}
    for path in chaos.sockets("cut").iterdir():
        path.unlink()
    (chaos.sockets("half-cut") / "qmp").unlink()
    add(chaos.places.journal, {"lost": '{"schema": 1, "na'})
    qemus = chaos.places.qemus()
    _end_twice(chaos)
    assert chaos.places.qemus() == qemus
    chaos.command("serve", "--farm", "lab", "--detach")
    adopted = (*BYSTANDERS, "killed", "left", "starved")
    told = chaos.follow(
        until=lambda told: (
            chaos.over(told, *adopted)
            and "unreachable" in _states(told, "cut")
            and "differs" in _states(told, "half-cut")
            and "stranger" in _states(told, "lost")
        )
    )
    assert all(_states(told, name) == ["running"] for name in adopted)
    assert _states(told, "half-cut") == ["running", "differs"]
    assert _once(told, "cut", "unreachable", "")
    assert _once(told, "half-cut", "differs", "sockets are gone from")
    assert _once(told, "lost", "record-lost", "its record was unreadable")
    assert _once(told, "lost", "stranger", "no machine on record has it")
    assert chaos.pid("half-cut") == pids["half-cut"]
    # A person ends what nobody else can reach.
    os.kill(pids["cut"], signal.SIGKILL)
    told = chaos.follow(until=lambda told: chaos.over(told, "cut"))
    assert _once(told, "cut", "restarting", "QEMU vanished")
    with _process(pids["lost"]) as ended:
        trio.run(_quit, chaos.sockets("lost"))
        assert ended(PATIENCE)
    did = chaos.up()
    assert did.pop("lost") == "added"
    assert set(did.values()) == {"unchanged"}
    chaos.follow(until=lambda told: chaos.over(told, "lost"))
    chaos.command("restart", "half-cut", "--grace", "0")  # with sockets anew
    chaos.follow(until=lambda told: chaos.over(told, "half-cut"))


def _end_twice(chaos: Chaos) -> None:
    """While a client listens, for whom the daemon would end slowly."""
    daemon = _daemon_pid(chaos.places)
    with chaos.daemon.open("GET", "events"), _process(daemon) as ended:
        os.kill(daemon, signal.SIGTERM)
        if not ended(0.2):
            os.kill(daemon, signal.SIGTERM)
        assert ended(PATIENCE)


@contextmanager
def _process(pid: int) -> Iterator[Callable[[float], bool]]:
    """What says whether the process ends within so many seconds."""
    pidfd = os.pidfd_open(pid)
    try:
        yield lambda seconds: bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


async def _quit(sockets: Path) -> None:
    async with qmpkit.connect(sockets / "tools") as qmp:
        await qmp.execute("quit")


async def _count(sockets: Path) -> int:
    """kvm-tiny's counter in guest memory."""
    async with qmpkit.connect(sockets / "tools") as qmp:
        return await counted(qmp)


def _fill_the_block(path: Path) -> None:
    """A file that ends with a block cannot grow on a full disk."""
    missing = -path.stat().st_size % 4096
    add(path, {"x" * (missing - 2 if missing > 2 else missing + 4094): None})


async def test_on_a_full_disk_a_stop_is_done_and_told_not_to_be_durable(
    qemu: str, places: Places
) -> None:
    bare = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")
    with small_disk(places.state) as disk:
        async with leaks():
            async with lab() as supervisor:
                kept = await supervisor.ensure(bare)
                while json.loads(places.records()["bare"])["phase"] != "up":  # noqa: ASYNC110
                    await trio.sleep(0.01)
                _fill_the_block(places.journal)
                disk.fill()
                with supervisor.subscribe() as happenings:
                    with pytest.raises(qmpkit.JournalFailed, match="No space left"):
                        await supervisor.declare("bare", "paused")
                    with pytest.raises(qmpkit.JournalFailed, match="No space left"):
                        await supervisor.ensure(attrs.evolve(bare, name="more"))
                    assert (kept.state, kept.declared) == ("running", "running")
                    await supervisor.declare("bare", "stopped")
                    assert (kept.state, kept.pid) == ("gone", None)
                    assert isinstance(kept.not_durable, qmpkit.JournalFailed)
                told = [it async for it in happenings if it.machine == "bare"]
                assert "not-durable" in [it.state for it in told]
                disk.free()
                await supervisor.declare("bare", "stopped")
                assert kept.not_durable is None
            await end_all()
