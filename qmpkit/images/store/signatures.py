"""Whether a keyring's owner has signed the checksums: gpgv says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio

from qmpkit.errors import BinaryMissing, SignatureWrong
from qmpkit.process.limits import Limits
from qmpkit.process.tools import Completed, run

__all__ = ["Signed", "verified"]

_LIMITS = Limits(cpu=30, memory=1 << 30, time=60)
_STATUS, _TEXT, _SIGNATURE = 3, 4, 5  # descriptors of the child
_GOOD, _VALID = "[GNUPG:] GOODSIG ", "[GNUPG:] VALIDSIG "
# What gpgv says of a signature that is none, in words.
_BAD = {
    "BADSIG": "the text is not what was signed",
    "NO_PUBKEY": "the key that signed is not in the keyring",
    "EXPKEYSIG": "the key that signed has expired",
    "EXPSIG": "the signature has expired",
    "REVKEYSIG": "the key that signed was revoked",
    "NODATA": "there is no signature",
}


@attrs.frozen
class Signed:
    """`text`: what the signature covers; `by`: the key's fingerprint and its owner."""

    text: bytes
    by: str


async def verified(source: str, text: bytes, signature: bytes | None, keyring: Path) -> Signed:
    """What of *text* is signed by a key of *keyring*, by whom; *signature* None: it is inside.

    *source* is what an error names.  The keyring is a file of keys as `gpg --export`
    writes it.  `SignatureWrong` when it is not signed so; `BinaryMissing` without gpgv.
    Cancellation kills gpgv.
    """
    ring = await trio.to_thread.run_sync(_usable, source, keyring)
    words = ["gpgv", "--keyring", str(ring), "--status-fd", str(_STATUS)]
    fds = {}
    with ExitStack() as stack:
        status = fds[_STATUS] = stack.enter_context(_in_memory(b""))
        fds[_TEXT] = stack.enter_context(_in_memory(text))
        if signature is None:
            words += ["--output", "-", _path(_TEXT)]
        else:
            fds[_SIGNATURE] = stack.enter_context(_in_memory(signature))
            words += [_path(_SIGNATURE), _path(_TEXT)]
        try:
            done = await run(words, fds=fds, limits=_LIMITS, name="gpgv")
        except BinaryMissing as error:
            raise BinaryMissing("gpgv is not on PATH", "sudo apt install gpgv") from error
        told = os.pread(status, 1 << 16, 0).decode(errors="replace").splitlines()
    by = _signer(source, done, told)
    return Signed(done.stdout if signature is None else text, by)


def _signer(source: str, done: Completed, told: list[str]) -> str:
    good = [line.removeprefix(_GOOD) for line in told if line.startswith(_GOOD)]
    valid = [line.removeprefix(_VALID) for line in told if line.startswith(_VALID)]
    if done.status.success and good and valid and not done.truncated:
        owner = good[0].partition(" ")[2]
        return f"{owner} ({valid[0].split()[0]})"
    words = {line.removeprefix("[GNUPG:] ").split(" ")[0] for line in told}
    why = next((text for word, text in _BAD.items() if word in words), "")
    why = why or done.err.strip() or f"gpgv ended with {done.status}"
    raise SignatureWrong(source, f"its signature is not right: {why}", "use the publisher's keys")


def _usable(source: str, keyring: Path) -> Path:
    try:
        with keyring.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        why = f"the keyring {str(keyring)!r} cannot be read: {error.strerror}"
        raise SignatureWrong(source, why, "name the file with the publisher's keys") from error
    if start.startswith(b"-----BEGIN PGP"):
        cure = f"gpg --dearmor {keyring.name}"
        raise SignatureWrong(source, f"the keyring {str(keyring)!r} is armored text", cure)
    return keyring.absolute()  # a name without a slash gpgv would look for in its home


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("qmpkit-signed", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)
