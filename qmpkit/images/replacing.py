"""The file that a new image takes the place of: kept from QEMU until then, its mode kept after.

A QEMU that opened it during a copy of hours would go on writing into a file without a
name, and all of that would be lost.  So a lock of QEMU's own kind is on it meanwhile.
Everything here blocks.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import attrs

from qmpkit.errors import ImageInUse
from qmpkit.host.holders import allow_writing, deny_writing, file_locked, holders_of
from qmpkit.images.store.uses import IN_STORE, homes_of
from qmpkit.images.tool import Asked

__all__ = ["Replaced"]

_ACL = "system.posix_acl_access"


@attrs.frozen
class Replaced:
    """A file that no QEMU can open for writing, until `release()`."""

    _asked: Asked
    _path: Path
    _fd: int
    _private: bool

    @classmethod
    def held(cls, asked: Asked, path: Path, *, private: bool) -> Replaced:
        """Hold *path*, a regular file.  `ImageInUse` when a QEMU has it open.

        `ImageFailed` for an image of the image store, which nothing takes the place of.

        *private*: only its owner gets the new one, whatever the mode was; and a QEMU
        that reads it may go on with the old one.
        """
        if homes_of([path]):
            raise asked.failed(IN_STORE, "choose another name")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise asked.failed_by(error) from error
        replaced = cls(asked, path, fd, private)
        try:
            # First the lock, then the look: who comes between them is kept out or seen.
            deny_writing(fd)
            replaced._refuse_used()
        except OSError as error:
            replaced.release()
            raise asked.failed_by(error) from error
        except BaseException:
            replaced.release()
            raise
        return replaced

    def check(self) -> None:
        """That it is still what it was; `ImageFailed` or `ImageInUse`, or OSError."""
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return  # it was removed: then nobody runs on it by this name
        if not os.path.samestat(found, os.fstat(self._fd)):
            why = "another file has taken its place meanwhile"
            raise self._asked.failed(why, "look at it, and try again")
        self._refuse_used()

    def _refuse_used(self) -> None:
        # Readers rely on the content: it may be the base of a running overlay.
        if not file_locked(self._fd, for_writing=not self._private):
            return
        others = [str(who) for who in holders_of(self._path) if who.pid != os.getpid()]
        who = ", ".join(others) or "another process"
        raise ImageInUse(
            str(self._path), self._asked.doing, f"{who} has it open", "stop that machine first"
        )

    def hand_on(self, fd: int) -> None:
        """Give the new file its owner, its group and its mode; where it may not, nobody more.

        To be done before the new one has a name.  Raises OSError.
        """
        old = os.fstat(self._fd)
        mode = stat.S_IMODE(old.st_mode) & 0o777
        if not _owned(fd, old.st_uid, old.st_gid) or not _same_list(self._fd, fd):
            # The group's rights would be another group's, which had what all others have.
            mode &= ~0o070 | (mode & 0o007) << 3
        _set_mode(fd, 0o600 if self._private else mode)

    def release(self) -> None:
        """Let others have it again."""
        with suppress(OSError):
            allow_writing(self._fd)
        os.close(self._fd)


def _owned(fd: int, uid: int, gid: int) -> bool:
    """Give the file behind *fd* to *uid* and *gid*, as far as we may; whether *gid* has it."""
    for owner in (uid, -1):  # an ordinary user cannot give it away, but to his groups
        with suppress(OSError):
            os.fchown(fd, owner, gid)
            return True
    return os.fstat(fd).st_gid == gid


def _set_mode(fd: int, mode: int) -> None:
    try:
        os.fchmod(fd, mode)
    except OSError:  # FAT, where all files have one mode
        if stat.S_IMODE(os.fstat(fd).st_mode) & ~mode:
            raise


def _same_list(old: int, new: int) -> bool:
    """Copy the access control list, whose mask the mode shows as the group's rights.

    False when there is one that cannot be copied.
    """
    try:
        acl = os.getxattr(old, _ACL)
    except OSError:
        with suppress(OSError):  # what a default of the directory has given it
            os.removexattr(new, _ACL)
        return True
    try:
        os.setxattr(new, _ACL, acl)
    except OSError:
        return False
    return True
