"""The host's programs that build a disk: looked for all at once, run with their words kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.host.tools import BUILD_PROGRAMS, BUILD_WITHOUT_ROOT

__all__ = ["BuildFailed", "as_owner", "check_programs", "in_own_mounts", "run"]

# An ordinary user's PATH on Debian has neither mke2fs nor sfdisk.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_TAIL = 20  # lines of a failed program's output that are shown


class BuildFailed(QmpkitError):
    """A program that builds the disk refused; the message ends with what it said."""


def check_programs() -> None:
    """Raises HostLacks that names everything a build needs and does not find."""
    wanted = {**BUILD_PROGRAMS, **({} if _root() else BUILD_WITHOUT_ROOT)}
    missing = [name for name in wanted if shutil.which(name, path=_PATH) is None]
    if missing:
        packages = " ".join(sorted({wanted[name] for name in missing}))
        what = f"a Debian disk is built with {', '.join(missing)}, not installed here"
        raise HostLacks(what, f"sudo apt install {packages}")
    if not _root():
        _check_namespace()


def _check_namespace() -> None:
    try:
        run(as_owner(["true"]))
    except BuildFailed as error:
        cure = "run it as root once, or: sudo usermod --add-subuids 100000-165535 "
        cure += '--add-subgids 100000-165535 "$USER"'
        what = f"an ordinary user cannot have a range of user ids here: {error}"
        raise HostLacks(what, cure) from error


def as_owner(argv: Sequence[str]) -> list[str]:
    """*argv*, to be run as the owner of files that belong to many users."""
    if _root():
        return list(argv)
    return ["unshare", "--map-root-user", "--map-auto", "--", *argv]


def in_own_mounts(argv: Sequence[str]) -> list[str]:
    """*argv*, to be run so that what it mounts is seen by nobody else and ends with it.

    mmdebstrap mounts /proc, /sys and parts of /dev, and when it is killed does not
    unmount them: whoever cleans up after it must not find them there.
    """
    private = ["unshare", "--mount", "--"]
    if not _root():
        return list(argv)  # it makes itself a namespace
    try:
        run([*private, "true"])
    except BuildFailed:
        return list(argv)  # a container, where nothing can be mounted either
    return [*private, *argv]


def run(
    argv: Sequence[str],
    *,
    progress: Callable[[str], None] = lambda line: None,
    input: str = "",
    env: Mapping[str, str] | None = None,
) -> None:
    """Run *argv* to its end, each line of its output given to *progress*; raises BuildFailed.

    The program is told to end when this process does.
    """
    command = ["setpriv", "--pdeathsig", "TERM", "--", *argv]
    with subprocess.Popen(
        command,
        env=_environment(env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(input)
            process.stdin.close()
            said = _follow(process.stdout, progress)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        text = "\n".join(said) or f"exit status {process.returncode}"
        raise BuildFailed(f"{' '.join(argv[:6])}: {text}")


def _follow(lines: Iterable[str], progress: Callable[[str], None]) -> deque[str]:
    said: deque[str] = deque(maxlen=_TAIL)
    for line in lines:
        said.append(line.rstrip())
        progress(line.rstrip())
    return said


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # PYTHON…: the guest's packages compile their own modules with the guest's Python.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "PATH": _PATH, "LC_ALL": "C.UTF-8", **more}


def _root() -> bool:
    return os.geteuid() == 0
