"""Secrets of encrypted images, on their way to qemu-img.

A secret goes to qemu-img in a file in memory that only it inherits: it stands on no
command line, in no environment and on no disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.encryption import secret_problem

__all__ = ["Key", "Secret", "held_keys", "same_secret"]

Secret = str | bytes

_FIRST_FD = 10  # below are the standard streams and a draft


@attrs.frozen
class Key:
    """A secret as qemu-img gets it: the name of its object, and the descriptor to inherit."""

    id: str
    child_fd: int
    fd: int

    @property
    def words(self) -> tuple[str, str]:
        """What defines the object."""
        return "--object", f"secret,id={self.id},file=/proc/self/fd/{self.child_fd}"

    @property
    def fds(self) -> dict[int, int]:
        """What qemu-img must inherit for it."""
        return {self.child_fd: self.fd}


@contextmanager
def held_keys(*secrets: Secret | None) -> Iterator[tuple[Key | None, ...]]:
    """A key for each of *secrets*, None for None; gone with the block.

    `SpecInvalid` for a secret that qemu-img cannot take.
    """
    plain = [None if secret is None else _bytes(secret) for secret in secrets]
    with ExitStack() as stack:
        keys: list[Key | None] = []
        for number, secret in enumerate(plain):
            if secret is None:
                keys.append(None)
                continue
            fd = os.memfd_create("qmpkit-secret", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            os.write(fd, secret)
            keys.append(Key(f"key{number}", _FIRST_FD + number, fd))
        yield tuple(keys)


def same_secret(one: Secret, other: Secret) -> bool:
    """Whether both are the same to QEMU."""
    return _bytes(one) == _bytes(other)


def _bytes(secret: Secret) -> bytes:
    plain = secret.encode() if isinstance(secret, str) else secret
    if problem := secret_problem(plain):
        # Whatever is handled meanwhile, a traceback is not to show it.
        raise SpecInvalid([Fault("secret", f"the secret {problem}")]) from None
    return plain
