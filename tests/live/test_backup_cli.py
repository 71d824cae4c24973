"""`qmpkit backup …` on real backups, without a daemon."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.trio import serve

import qmpkit
from qmpkit import Supervisor, backups
from qmpkit.cli import main
from qmpkit.server.api import make_app
from qmpkit.server.daemon import IDLE, config_for
from qmpkit.server.door import opened_door
from qmpkit.server.jobs import Jobs
from tests.live.blocks import bare, holds, write
from tests.live.commands import COMMAND
from tests.live.kept import Places, end_all, lab
from tests.sizes import NEWEST
from tests.unit.server.client import Client

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def made(qemu: str, folder: Path) -> None:
    """Three points of two disks."""
    async with qmpkit.running(bare(qemu, folder, "qcow2", "raw"), paused=True) as vm:
        for number in (1, 2, 3):
            await write(vm, "disk0", number, number)
            await vm.backups.run(folder / "b")


def test_backups_are_listed_verified_restored_and_pruned(
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ran(*words: str) -> tuple[int, str, str]:
        status = main(["backup", *words])
        return status, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    trio.run(made, qemu, tmp_path)
    status, out, _ = ran("list", "b")
    assert status == 0
    assert "raw image holds no dirty bitmap" in out and out.count("incremental") == 2
    points = json.loads(ran("list", "b", "--json")[1])
    assert [point["number"] for point in points] == [1, 2, 3]
    layer = points[1]["disks"]["disk0"]["file"]
    assert ran("verify", "b") == (
        0,
        "",
        "b: reading …\nb: all points can be restored, every checksum is right\n",
    )
    status, _, err = ran("restore", "b", "back.raw", "--format", "raw")
    assert status == 2 and "Cure: --disk, of disk0, disk1" in err
    restoring = ("restore", "b", "back.raw", "--format", "raw", "--disk", "disk0", "--point", "2")
    status, _, err = ran(*restoring)
    assert status == 0 and "back.raw: raw, disk0 as it was at point 2, 20" in err
    trio.run(holds, "back.raw", "raw", {1: 1, 2: 2, 3: 0})
    assert ran(*restoring)[0] == 2, "nothing is written over"
    words = ("verify", "b", "--against", "0.qcow2", "--disk", "disk0")
    assert ran(*words)[1].startswith("0.qcow2 is what disk0 was at point 3, 20")
    status, out, _ = ran(*words, "--point", "1")
    assert status == 1 and out.startswith("0.qcow2 is NOT what disk0 was at point 1")
    assert ran("prune", "b")[0] == 2
    status, out, _ = ran("prune", "b", "--keep-last", "2", "--dry-run")
    assert status == 0 and out.startswith("point 1, 20") and out.endswith(", would go\n")
    status, out, err = ran("prune", "b", "--keep-last", "2")
    assert status == 0 and out.endswith(", is gone\n") and f"merge into {layer}" in err
    assert [point.number for point in trio.run(backups.points, "b")] == [2, 3]
    Path("b", layer).write_bytes(b"")
    status, out, _ = ran("verify", "b")
    assert status == 1 and out.startswith(f"{layer}: it has 0 bytes instead of ")
    assert ran("restore", "b", "x.raw", "--disk", "disk0")[0] == 1
    assert ran("list", ".")[0] == 2


@asynccontextmanager
async def daemon() -> AsyncIterator[Supervisor]:
    """One for the farm "lab", in this process."""
    async with lab() as supervisor, trio.open_nursery() as nursery:
        over = trio.Event()
        with opened_door("lab", supervisor.runtime_dir, None) as (listener, _):
            app = make_app(supervisor, Jobs(nursery), over.set)
            config = config_for(listener.fileno(), IDLE)
            nursery.start_soon(
                partial(serve, app, config, shutdown_trigger=over.wait)  # type: ignore[arg-type]
            )
            yield supervisor
            over.set()


async def test_a_daemon_s_machine_is_backed_up(qemu: str, places: Places, tmp_path: Path) -> None:
    async with daemon() as supervisor:
        kept = await supervisor.ensure(bare(qemu, tmp_path, "qcow2", "raw"), paused=True)
        await kept.until(lambda: kept.vm is not None)

        ask = Client(supervisor.runtime_dir / ".api" / "http")

        async def refused(**words: object) -> str:
            return str((await ask.done("POST", "/v1/machines/bare/backup", words))["error"])

        assert kept.vm is not None
        await write(kept.vm, "disk0", 1, 1)
        words = ["bare", "b", "--compress", "--speed", "50MiB", "--compare"]
        argv = [*COMMAND, "backup", "run", *words]
        done = await trio.run_process(argv, cwd=tmp_path, capture_stderr=True)
        assert done.stderr.decode().startswith("b: point 1 of bare, full, ")
        assert b"copied whole: disk1: a raw image holds no dirty bitmap" in done.stderr
        where = {"folder": str(tmp_path / "b")}
        job = await ask.done("POST", "/v1/machines/bare/backup", where)
        assert job["result"]["kind"] == "incremental"
        assert job["step"] == {"phase": "checksum", "percent": 100}
        assert "disk1: a raw image" in await refused(**where, mode="incremental")
        assert "it has no guest agent" in await refused(**where, freeze=True)
        assert "No such file" in await refused(folder=str(tmp_path / "no" / "b"))
        status, _ = await ask.ask("POST", "/v1/machines/bare/backup", {"folder": "b"})
        assert status == 400
        await supervisor.declare("bare", "stopped", powerdown_grace=0.0)
        job = await ask.done("POST", "/v1/machines/bare/backup", where)
        assert job["result"]["kind"] == "incremental", "of one that is down, too"
    kinds = [point.kind for point in await backups.points(tmp_path / "b")]
    assert kinds == ["full", "incremental", "incremental"]
    await end_all()


README = Path(__file__).parents[2] / "README.md"


async def test_the_readme_s_program_runs(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "vm.backups.run" in block)
    names: dict[str, Any] = {}
    program = program.replace("freeze=True, ", "")  # there is no guest
    exec(f"async def program(vm):\n{textwrap.indent(program, '    ')}", names)
    monkeypatch.chdir(tmp_path)
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 1, 1)
        await names["program"](vm)
    await holds("restored.qcow2", "qcow2", {1: 1})
