from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qmpkit.testing.guests import KVM_TINY_READY, build_kvm_tiny, store


def write(text: str) -> store.Builder:
    def build(scratch: Path) -> None:
        (scratch / "file").write_text(text)

    return build


def test_a_build_is_there_under_its_digest_and_its_name(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    path = store.publish(link, {"a": 1}, write("one"))
    assert path.name == f"tiny-{store.digest({'a': 1})}"
    assert (link / "file").read_text() == "one"
    assert store.current(link) == {"a": 1}


def test_equal_facts_are_not_built_again(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    store.publish(link, {"a": 1}, write("one"))
    store.publish(link, {"a": 1}, write("two"))
    assert (link / "file").read_text() == "one"


def test_the_name_moves_to_the_new_build(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    old = store.publish(link, {"a": 1}, write("one"))
    store.publish(link, {"a": 2}, write("two"))
    assert (link / "file").read_text() == "two"
    assert (old / "file").read_text() == "one"  # somebody may be booting it


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(scratch: Path) -> None:
        (scratch / "half").touch()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        store.publish(tmp_path / "tiny", {"a": 1}, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_builder_leaves_nothing_half_behind_the_next(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from qmpkit.testing.guests import store

        def build(scratch):
            (scratch / "file").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        store.publish(Path(sys.argv[1]) / "tiny", {"a": 1}, build)
        """
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert not (tmp_path / "tiny").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the scratch directory
    path = store.publish(tmp_path / "tiny", {"a": 1}, write("whole"))
    assert (tmp_path / "tiny/file").read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "tiny", path])


def test_a_damaged_build_is_built_again(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    path = store.publish(link, {"a": 1}, write("one"))
    (path / "manifest.json").write_text("{")
    assert store.current(link) == {}
    store.publish(link, {"a": 1}, write("two"))
    assert (link / "file").read_text() == "two"


def test_the_lock_keeps_another_process_out(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from qmpkit.testing.guests import store\n"
        "with store.locked(Path(sys.argv[1])): print('in', flush=True)"
    )
    with store.locked(tmp_path / "lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "lock"], stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
    output, _ = other.communicate(timeout=30)
    assert output == b"in\n"


def test_only_the_latest_builds_are_kept(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    for number in range(5):
        path = store.publish(link, {"a": number}, write(str(number)))
        os.utime(path, (number, number))
    other = store.publish(tmp_path / "tiny-other", {"a": 9}, write("other"))
    kept = [path for path in tmp_path.glob("tiny-*") if path.is_dir() and not path.is_symlink()]
    assert len([path for path in kept if path != other]) == 3
    assert (link / "file").read_text() == "4"


def test_scratch_of_killed_builders_goes_after_an_hour(tmp_path: Path) -> None:
    link = tmp_path / "tiny"
    old, fresh = (tmp_path / f".tiny-{'a' * 16}-{name}" for name in ("old", "fresh"))
    old.mkdir()
    fresh.mkdir()
    os.utime(old, (0, 0))
    store.publish(link, {"a": 1}, write("one"))
    assert not old.exists()
    assert fresh.exists()


def test_kvm_tiny_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path))
    lines: list[str] = []
    path = build_kvm_tiny(progress=lines.append)
    assert path == build_kvm_tiny(progress=lines.append) == (tmp_path / "guests/kvm-tiny").resolve()
    assert lines == ["writing the boot sector"]
    assert KVM_TINY_READY.encode() in (path / "firmware.bin").read_bytes()
    assert (path / "disk.img").stat().st_size == 1 << 20
