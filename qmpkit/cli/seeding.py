"""`qmpkit run IMAGE --user`: the cloud-init seed that lets a person log in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from qmpkit.cli.exits import Refusal
from qmpkit.images.seed import make_seed
from qmpkit.spec.block import Disk
from qmpkit.spec.cloud_init import CloudInit, host_name

__all__ = ["host_name", "public_keys", "seed_disk"]


async def seed_disk(path: Path, machine: str, user: str | None, files: Sequence[Path]) -> Disk:
    """A seed at *path* for *user* (None: the image's own) and the keys in *files*.

    Without *files* the keys are those in ~/.ssh.
    """
    keys = await trio.to_thread.run_sync(public_keys, files)
    seed = await make_seed(path, CloudInit(hostname=host_name(machine), user=user, ssh_keys=keys))
    # virtio-blk: cloud kernels often have no driver for a CD drive.
    return Disk(seed, format="raw", readonly=True)


def public_keys(files: Sequence[Path]) -> tuple[str, ...]:
    """The public keys in *files*, or all of ~/.ssh; blocking, Refusal when there is none."""
    if files:
        return tuple(_keys(files))
    folder = Path.home() / ".ssh"
    keys = tuple(_keys(sorted(folder.glob("*.pub"))))
    if not keys:
        raise Refusal(
            f"--user: there is no public key (*.pub) in {folder}, so nobody could log in. "
            "Cure: make one with ssh-keygen, or name one with --ssh-key FILE"
        )
    return keys


def _keys(files: Iterable[Path]) -> Iterable[str]:
    for path in files:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise Refusal(f"--ssh-key {path}: cannot be read: {why}") from error
        if "PRIVATE KEY" in text:
            raise Refusal(f"--ssh-key {path}: this is the private key. Cure: name {path}.pub")
        lines = [line.strip() for line in text.splitlines()]
        yield from (line for line in lines if line and not line.startswith("#"))
