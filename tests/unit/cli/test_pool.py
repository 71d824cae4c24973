"""`qmpkit pool run`: one run that fails takes no other with it."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.cli import pool as cli_pool
from qmpkit.cli.pool import Work, run_in_pool
from qmpkit.errors import GuestRefused, MachineDied, MachineGone
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.operations.completed import Completed
from qmpkit.process.status import ExitStatus
from qmpkit.templates.errors import PoolClosed


class FakeVM:
    """A guest that does as its command says: `poweroff`, `die`, `wait`; else it echoes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.agent = self
        self.dead = trio.CancelScope()

    async def run(self, argv: Sequence[str]) -> Completed:
        match argv[-1]:
            case "poweroff":
                raise MachineGone(self.name, "guest-exec")
            case "die":
                self.dead.cancel()
                await trio.sleep_forever()
            case "die later":
                self.dead.cancel()
            case "wait":
                await wait_all_tasks_blocked(0.02)  # until the others have done what they can
        return Completed(tuple(argv), 0, None, argv[-1].encode(), b"")


class FakePool:
    """`strangers`: which of its machines do not become somebody; `most`: it gives no more."""

    strangers: tuple[int, ...] = ()
    most = 99

    def __init__(self, *_: object, **__: object) -> None:
        self._taken = 0

    async def __aenter__(self) -> FakePool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[FakeVM]:
        self._taken += 1
        if self._taken > self.most:
            raise PoolClosed("web")
        name = f"vm{self._taken}"
        if self._taken in self.strangers:
            raise GuestRefused(name, "to become somebody", "it would not")
        vm = FakeVM(name)
        with vm.dead:
            yield vm
        if vm.dead.cancel_called:
            raise MachineDied(ExitReport(name, ExitCause.CRASHED, ExitStatus(code=1), 1.0))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[FakePool]:
    async def opened(_: object) -> None:
        await trio.lowlevel.checkpoint()

    class Fakes(FakePool):
        pass

    monkeypatch.setattr(cli_pool, "known_template", str)
    monkeypatch.setattr(cli_pool, "open_template", opened)
    monkeypatch.setattr(cli_pool, "Pool", Fakes)
    return Fakes


def work(*, jobs: int, as_json: bool = True) -> Work:
    return Work(
        template="web",
        command=("sh", "-c"),
        times=None,
        lines=True,
        jobs=jobs,
        warm=1,
        memory=None,
        twin=True,
        as_json=as_json,
    )


def _lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def _told(capsys: pytest.CaptureFixture[str]) -> dict[int, Any]:
    found = map(json.loads, capsys.readouterr().out.splitlines())
    return {run["run"]: run.get("stdout", run.get("error")) for run in found}


@pytest.mark.parametrize("jobs", [1, 2])
async def test_a_guest_that_ends_fails_its_own_run(
    jobs: int,
    fakes: type[FakePool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fakes.strangers = (5,)
    _lines(monkeypatch, "wait", "poweroff", "die", "b", "stranger", "die later", "c")
    assert await run_in_pool(work(jobs=jobs)) == 1
    told = _told(capsys)
    results = {run: told.pop(run) for run in (1, 4, 6, 7)}
    assert results == {1: "wait", 4: "b", 6: "die later", 7: "c"}
    assert told[2] == str(MachineGone(told[2].split("'")[1], "guest-exec"))
    assert "died: QEMU crashed" in told[3]
    assert "it would not" in told[5]
    assert told.keys() == {2, 3, 5}


async def test_people_are_told_which_run_it_was(
    fakes: type[FakePool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.strangers = (2,)
    _lines(monkeypatch, "poweroff", "stranger", "c")
    assert await run_in_pool(work(jobs=1, as_json=False)) == 1
    out, err = capsys.readouterr()
    err = " ".join(err.split())
    assert out == "c"
    assert "run 1 in vm1: machine 'vm1' has ended" in err
    assert "run 2: the guest of machine 'vm2'" in err and "2 of 3 failed" in err


async def test_what_has_begun_ends_when_the_pool_gives_no_more(
    fakes: type[FakePool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fakes.most = 2
    _lines(monkeypatch, "wait", "b", "c")
    with pytest.RaisesGroup(PoolClosed, allow_unwrapped=True):
        await run_in_pool(work(jobs=2))
    assert _told(capsys) == {1: "wait", 2: "b"}
