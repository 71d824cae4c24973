"""What several live tests set up."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.images import drafts
from qmpkit.testing.leaks import living_with
from tests.live.in_process import Command
from tests.live.kept import Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Directories for kept machines; a test that fails leaves none running either."""
    runtime = Path(tempfile.mkdtemp(prefix="qk-"))  # short, as the paths of sockets are to be
    found = Places(tmp_path / "state", runtime)
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(found.state))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(runtime))
    yield found
    for pid in living_with(f"QMPKIT_RUNTIME_DIR={runtime}"):  # a failure may leave some
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(runtime)


@pytest.fixture
def qemu_img(qemu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The qemu-img beside each QEMU, and the one that qmpkit finds."""
    folder = Path(qemu).resolve().parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(folder / "qemu-img")


@pytest.fixture(scope="session")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qcow2 that "secret one" opens, to be copied: making one takes seconds of CPU."""
    path = tmp_path_factory.mktemp("encrypted") / "qcow2"

    async def made() -> Path:
        options = images.Options(iter_time=10)
        for _ in range(4):  # on a busy host QEMU 7.2 cannot time it now and then
            with suppress(ImageFailed):
                return await images.create(
                    path, "1MiB", "qcow2", secret="secret one", options=options
                )
        return await images.create(path, "1MiB", "qcow2", secret="secret one", options=options)

    return trio.run(made)


@pytest.fixture
def image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`qmpkit image …` in this process and in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Command(capsys, "image")


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a new image is drafted: as a file without a name, or where that is impossible."""
    if request.param == "named":

        def refuse(folder: Path, child_fd: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)
    return str(request.param)
