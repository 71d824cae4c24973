"""What is built once and kept: directories named by their content, whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from qmpkit._paths import cache_dir

__all__ = [
    "Builder",
    "current",
    "digest",
    "forget_old",
    "guests_dir",
    "locked",
    "manifest",
    "publish",
]

Builder = Callable[[Path], None]

_MANIFEST = "manifest.json"
_ABANDONED = 3600  # seconds: no build takes that long
_DIGITS = 16  # of a digest in a name


def guests_dir() -> Path:
    """Where built guests are kept, `${cache}/guests` in a profile; made when missing."""
    folder = cache_dir() / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file *path*, waiting for whoever holds it; it ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def digest(facts: Mapping[str, object]) -> str:
    """A short name for *facts*, the same for equal facts."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def current(link: Path) -> dict[str, object]:
    """The facts that what *link* points to was built from; empty when there is none."""
    return manifest(link) if link.exists() else {}


def manifest(directory: Path) -> dict[str, object]:
    """The facts written down in *directory*."""
    try:
        facts = json.loads((directory / _MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def publish(link: Path, facts: Mapping[str, object], build: Builder) -> Path:
    """Build `<link>-<digest of facts>` unless it is there, and point *link* to it.

    *build* fills a scratch directory that takes its name only when it is whole, so
    a builder that is killed leaves at most a scratch directory, which the next one
    removes.  The caller holds the lock of *link*.
    """
    target = link.with_name(f"{link.name}-{digest(facts)}")
    if not manifest(target):
        _build(target, facts, build)
    _point(link, target)
    forget_old(link, target)
    return target


def forget_old(link: Path, target: Path, *, keep: int = 3) -> None:
    """Keep *target* and the latest builds: an older one may still be in use, but not for days."""
    pattern = f"{link.name}-{'[0-9a-f]' * _DIGITS}"
    builds = sorted(link.parent.glob(pattern), key=_changed)
    for build in builds[:-keep]:
        if build != target:
            shutil.rmtree(build, ignore_errors=True)
    for scratch in link.parent.glob(f".{pattern}-*"):  # whose builder was killed
        if time.time() - _changed(scratch) > _ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)


def _changed(path: Path) -> float:
    """When *path* last changed; long ago when another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _build(target: Path, facts: Mapping[str, object], build: Builder) -> None:
    prefix = f".{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        build(scratch)
        (scratch / _MANIFEST).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        scratch.chmod(0o755)
        if target.exists():  # without a manifest: made by hand or damaged
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == Path(target.name):
        return
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    fresh.replace(link)
