"""Control groups (cgroup v2): a group for each process that is to be limited.

A group is made below a directory that we may divide, and locked while it is empty and ours:
whoever finds one that is empty and not locked may remove it, so that a SIGKILL of ours leaves
nothing that the next program does not sweep.

Everything is read below a root directory, so that made-up trees can be tried.  Blocking.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from qmpkit.errors import HostLacks

__all__ = ["Base", "Group", "Pressure", "base_of", "device_number", "group_of", "made_group"]
__all__ += ["sweep", "sweep_groups"]

PREFIX = "qmpkit-"
BASE_VARIABLE = "QMPKIT_CGROUP"

_OWN = "qmpkit.slice"
_MAIN = "qmpkit-main"  # where the processes go that were in a group which is divided
_DELEGATED = ("trusted.delegate", "user.delegate")
_SYSTEMD = "systemd-run --user --scope -p Delegate=yes …, or Delegate=yes in the service's unit"


@attrs.frozen
class Base:
    """A directory below which groups can be made; `make`: it is not there yet."""

    mount: Path
    path: Path
    controllers: tuple[str, ...]
    make: bool = False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def mount_of(root: Path = Path("/")) -> Path | None:
    """Where cgroup v2 is mounted; None when it is not."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        words = line.split()
        if "-" in words and words[words.index("-") + 1 : words.index("-") + 2] == ["cgroup2"]:
            return root / words[4].lstrip("/")
    return None


def _place(text: str) -> str | None:
    """The group of version 2 that a `/proc/<pid>/cgroup` names."""
    for line in text.splitlines():
        if line.startswith("0::"):
            return line[3:].lstrip("/").removesuffix(" (deleted)")
    return None


def base_of(root: Path = Path("/")) -> Base:
    """Where this process may make groups.

    That is $QMPKIT_CGROUP (a path below the mount), else our own group, if it was delegated
    to us (systemd's Delegate=), else a slice of our own in the topmost group that we may
    write to: for root the root, for a user that of its systemd.  Not in a service's group
    that nobody handed to us, which could not be started again while a machine is in it.
    Raises HostLacks.
    """
    mount = mount_of(root)
    if mount is None:
        what = "cgroup v2 is not mounted, or hidden from us"
        cure = "boot with systemd.unified_cgroup_hierarchy=1; in a container: --cgroupns=private"
        raise HostLacks(what, cure)
    if named := os.environ.get(BASE_VARIABLE):
        return _named(mount, mount / named.lstrip("/"))
    own = mount / (_place(_text(root / "proc/self/cgroup")) or "")
    own = own.parent if own.name == _MAIN else own
    if own != mount and _divisible(own) and _delegated(own):
        return Base(mount, own, _controllers(own))
    top = None
    for group in (own, *own.parents):
        if _divisible(group):
            top = group
        if group == mount:
            break
    if top is None:
        raise HostLacks("no control group was handed to us (delegated) to be divided", _SYSTEMD)
    return Base(mount, top / _OWN, _controllers(top), make=True)


def _named(mount: Path, path: Path) -> Base:
    if not _divisible(path):
        what = f"the control group {path} of ${BASE_VARIABLE} is not there, or not ours to divide"
        raise HostLacks(what, f"mkdir {path}; chown -R $USER {path}")
    return Base(mount, path, _controllers(path))


def _divisible(group: Path) -> bool:
    files = (group / "cgroup.procs", group / "cgroup.subtree_control")
    return os.access(group, os.W_OK | os.X_OK, effective_ids=True) and all(
        os.access(path, os.W_OK, effective_ids=True) for path in files
    )


def _delegated(group: Path) -> bool:
    """Whether systemd has marked it so: that we may write to it says less."""
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _controllers(group: Path) -> tuple[str, ...]:
    return tuple(_text(group / "cgroup.controllers").split())


@attrs.frozen
class Pressure:
    """How much of the last time somebody waited, in percent (PSI).

    `some`: at least one thread, `full`: all at once; over the last 10, 60 and 300 s.
    `total`: microseconds altogether of "some".
    """

    some: tuple[float, float, float] = (0.0, 0.0, 0.0)
    full: tuple[float, float, float] = (0.0, 0.0, 0.0)
    total: int = 0

    @classmethod
    def parsed(cls, text: str) -> Pressure:
        """A `*.pressure` file; zeros for what it does not tell."""
        found: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            kind, *words = line.split()
            found[kind] = dict(word.partition("=")[::2] for word in words)

        def averages(kind: str) -> tuple[float, float, float]:
            told = found.get(kind, {})
            ten, sixty, most = (float(told.get(f"avg{n}", 0)) for n in (10, 60, 300))
            return ten, sixty, most

        total = int(found.get("some", {}).get("total", 0))
        return cls(averages("some"), averages("full"), total)


@attrs.frozen
class Group:
    """The group of one machine."""

    path: Path
    mount: Path

    def write(self, files: Mapping[str, str]) -> None:
        """Set its limits; HostLacks with the file when the kernel refuses one."""
        for name, value in files.items():
            _write(self.path / name, value)

    def read(self, name: str) -> str:
        """What stands in one of its files; "" when it has none of that name."""
        return _text(self.path / name).strip()

    def pressure(self, kind: str) -> Pressure:
        """The pressure of "cpu", "memory" or "io"."""
        return Pressure.parsed(self.read(f"{kind}.pressure"))

    def enable(self, controllers: Sequence[str]) -> None:
        """Have *controllers* in it; HostLacks when they cannot be had."""
        _enable(self.path.parent, controllers)

    @property
    def controllers(self) -> tuple[str, ...]:
        """Those that it has."""
        return _controllers(self.path)


def _write(path: Path, value: str) -> None:
    try:
        # Truncated where it is a plain file of a made-up tree; the kernel does not care.
        path.write_text(value)
    except OSError as error:
        what = f"cannot write {value!r} to {path}: {error.strerror}"
        raise HostLacks(what, _cure_of(error)) from error


def _cure_of(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"a control group that is ours to divide: {_SYSTEMD}"
    if error.errno == errno.EBUSY:
        return f"a control group without processes of its own in {BASE_VARIABLE}"
    return ""


def _enable(base: Path, controllers: Sequence[str]) -> None:
    """Hand *controllers* down to the groups in *base*."""
    missing = set(controllers) - set(_text(base / "cgroup.subtree_control").split())
    if not missing:
        return
    if absent := sorted(missing - set(_controllers(base))):
        what = f"the control group {base} lacks the controller {', '.join(absent)}"
        raise HostLacks(what, lacking_cure(absent))
    words = " ".join(f"+{name}" for name in sorted(missing))
    try:
        (base / "cgroup.subtree_control").write_text(words)
    except OSError as error:
        if error.errno != errno.EBUSY:
            what = f"cannot hand {words} down from {base}: {error.strerror}"
            raise HostLacks(what, _cure_of(error)) from error
        _empty(base)  # what is divided may have no processes of its own
        _write(base / "cgroup.subtree_control", words)


def lacking_cure(controllers: Iterable[str]) -> str:
    """What hands these controllers to a user's processes."""
    wanted = " ".join(controllers)
    return f"sudo systemctl edit user@.service, with Delegate={wanted} under [Service]"


def _empty(base: Path) -> None:
    """Move the processes of *base* into a group below it.  It was handed to us to do so."""
    main = base / _MAIN
    main.mkdir(exist_ok=True)
    for pid in _text(base / "cgroup.procs").split():
        with suppress(ProcessLookupError):
            _write(main / "cgroup.procs", pid)


@contextmanager
def made_group(
    name: str, controllers: Sequence[str], files: Mapping[str, str], root: Path = Path("/")
) -> Iterator[Group]:
    """A new group for the machine *name*, its limits set, locked until the block ends.

    It is there after the block when a process is in it, else it is removed.  *files*: what to
    write into it.  Raises HostLacks when that cannot be had; then nothing is left of it.
    """
    base = base_of(root)
    if absent := sorted(set(controllers) - set(base.controllers)):
        what = f"the control group {base.path} lacks the controller {', '.join(absent)}"
        raise HostLacks(what, lacking_cure(absent))
    if base.make:
        _enable(base.path.parent, controllers)
        base.path.mkdir(exist_ok=True)
    sweep(base.path)
    _enable(base.path, controllers)
    path, lock = _new(base.path, name)
    try:
        group = Group(path, base.mount)
        group.write(files)
        yield group
    finally:
        _remove(path)  # not while a process is in it
        os.close(lock)


def _new(base: Path, name: str) -> tuple[Path, int]:
    """A directory that nobody had before, and the lock that keeps it from being swept."""
    for number in range(10_000):
        path = base / f"{PREFIX}{name}-{os.getpid()}.{number}"
        try:
            path.mkdir()
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except FileExistsError:
            continue
        except FileNotFoundError:  # swept between two of these lines
            continue
        except OSError as error:
            what = f"cannot make the control group {path}: {error.strerror}"
            raise HostLacks(what, _cure_of(error)) from error
        if path.exists():
            return path, fd
        os.close(fd)
    raise HostLacks(f"there are too many control groups in {base}", f"rmdir {base}/{PREFIX}*")


def _remove(path: Path) -> bool:
    """Remove a group that has no process; of a made-up tree with the files in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.ENOTEMPTY and not _text(path / "cgroup.procs").strip():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
            return True
        return False
    return True


def sweep(base: Path) -> list[Path]:
    """Remove the groups of machines that are gone; those removed."""
    removed = []
    for path in base.glob(f"{PREFIX}*") if base.is_dir() else ():
        if path.name == _MAIN or not path.is_dir():
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _remove(path):
                removed.append(path)
        except BlockingIOError:
            pass  # somebody is about to use it
        finally:
            os.close(fd)
    return removed


def sweep_groups(root: Path = Path("/")) -> None:
    """`sweep` where we make groups, if we may make any."""
    with suppress(HostLacks):
        sweep(base_of(root).path)


def group_of(pid: int, root: Path = Path("/")) -> Group | None:
    """The group that we have made for the process *pid*; None when it is in no such group."""
    mount = mount_of(root)
    place = _place(_text(root / f"proc/{pid}/cgroup"))
    if mount is None or not place:
        return None
    path = mount / place
    return Group(path, mount) if path.name.startswith(PREFIX) and path.name != _MAIN else None


def device_number(device: str) -> str:
    """ "8:0" for "/dev/sda"; HostLacks when that is no block device."""
    if not device.startswith("/"):
        return device
    try:
        found = Path(device).stat()
    except OSError as error:
        raise HostLacks(f"{device} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise HostLacks(f"{device} is no block device", "name the disk that its file system is on")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
