"""Machines saved, and checkpoints of several, at the shell."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

import qmpkit
from tests.live.blocks import holds, write
from tests.live.commands import piped, rest, said
from tests.live.counting import counting
from tests.live.in_process import Command, Ran
from tests.live.kept import Places
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST), pytest.mark.bound(180)]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
memory = "32MiB"
[machines.web]
count = 2
disks = [{{ file = "{{name}}.qcow2", format = "qcow2", make = "64MiB" }}]
"""


def test_saved_and_back_at_the_shell(
    tmp_path: Path,
    qemu: str,
    places: Places,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=qemu))
    monkeypatch.chdir(folder)
    run = Command(capfd)
    up = run.apart("up", "farm.toml")
    assert up.status == 0, up.err
    done = run.well("lab", "checkpoint", "calm", "--description", "before")
    assert "checkpoint calm of web1, web2" in done.out + done.err
    (point,) = json.loads(run.well("lab", "list", "--json").out)
    assert point["machines"] == ["web1", "web2"] and point["whole"]
    assert "before" in run.well("lab", "list").out
    assert "already (delete it (`delete_checkpoint`, qmpkit lab rm))" in " ".join(
        run("lab", "checkpoint", "calm").err.split()
    )
    assert run("lab", "checkpoint", "calm").status == 2
    assert "there is no checkpoint 'x' (there are: calm)" in run("lab", "rewind", "x").err
    assert "it is up (declare('web1', \"stopped\"), or qmpkit stop, first)" in " ".join(
        run("discard", "web1").err.split()
    )
    (saved,) = json.loads(run.well("save", "web1", "--ram", "packed", "--json").out)
    assert saved["name"] == "web1" and saved["ram"] == "packed" and saved["bytes"] > 0
    assert _states(run) == {"web1": "saved", "web2": "running"}
    assert run("save", "web1").status == 2
    said = _said(run, "save", "web*")
    assert "web2 is saved" in said and "web1" not in said
    assert "none of them is up" in _said(run, "save", "web*")
    assert run.well("wait", "web*", "--for", "stopped")
    run.well("start", "web1")
    assert _states(run) == {"web1": "running", "web2": "saved"}
    run.well("discard", "web2")
    assert run("discard", "web2").status == 2
    assert "back at the checkpoint calm" in _said(run, "lab", "rewind", "calm")
    assert _states(run) == {"web1": "running", "web2": "running"}
    assert run("lab", "rewind", "no").status == 2
    run.well("lab", "rm", "calm")
    assert json.loads(run.well("lab", "list", "--json").out) == []
    run.well("save", "web*")
    down = run.well("ps", "--json")
    assert {it["declared"] for it in json.loads(down.out)} == {"stopped"}
    refused = run("rm", "web2")
    assert refused.status == 2 and "it was saved with. Cure: --yes" in refused.err
    gone = run.well("rm", "web2", "--yes")
    assert "web2 is forgotten, and what it was saved with is discarded" in gone.out + gone.err
    (folder / "web1.qcow2").touch()  # somebody has written to it
    failed = run("up", "farm.toml")
    assert failed.status == 1 and "web2 is up" in failed.err
    assert "web1 FAILED" in failed.err and "was written to since" in failed.err
    assert "qmpkit discard" in failed.err
    run.well("save", "web2")
    run.well("discard", "web1")
    assert "web1 is up again" in _said(run, "up", "farm.toml")
    run.well("save", "web*")
    assert "web1: the memory that it was saved with, web2: " in run("down").err
    run.well("down", "--grace", "0", "--yes")
    assert not list(places.state.glob("lab/saved/*"))


async def test_a_folder_at_the_shell(
    tmp_path: Path, qemu: str, capfd: pytest.CaptureFixture[str]
) -> None:
    unit = tmp_path / "unit"
    async with qmpkit.running(counting(qemu, tmp_path, "qcow2")) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.save(unit)

    async def ran(*words: str) -> Ran:
        return await trio.to_thread.run_sync(Command(capfd).apart, *words)

    shown = await ran("saved", str(unit), "--verify", "--json")
    assert shown.status == 0 and json.loads(shown.out)["faults"] == []
    wrong = await ran("run", str(unit), "--user", "me", "--set", "memory=1GiB")
    assert wrong.status == 2 and "--user, --set cannot change" in wrong.err
    for options, said_of in (
        ((), "changes are thrown away at the end"),
        (("--write",), "on its own disks, so this once"),
    ):
        async with piped("run", str(unit), *options, "--json", "--powerdown-grace=0") as run:
            heard = await said(run, ": running\n")
            assert "it goes on where it was at" in heard and said_of in heard
            run.send_signal(signal.SIGTERM)
            out = await rest(run.stdout)
            assert await run.wait() == 0
        assert json.loads(out)["machine"] == "bare"
    spent = await ran("saved", str(unit))
    assert spent.status == 1 and "its disks have gone on since" in spent.err
    assert (await ran("run", str(unit), "--write")).status == 2
    await holds(str(tmp_path / "0.qcow2"), "qcow2", {0: 1})


def _said(run: Command, *words: str) -> str:
    done = run.well(*words)
    return done.out + done.err


def _states(run: Command) -> dict[str, str]:
    return {it["name"]: it["state"] for it in json.loads(run.well("ps", "--json").out)}
