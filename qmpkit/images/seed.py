"""cloud-init's seed: a small ISO that tells a cloud image its host name, its user and its keys.

cloud-init calls this the NoCloud data source.  Every cloud image looks for a disk
labelled `cidata`; attach the seed as `Disk(seed, format="raw", readonly=True)`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import trio

from qmpkit.errors import HostLacks
from qmpkit.images.drafts import Draft, new_image
from qmpkit.spec.cloud_init import CloudInit, seed_files

__all__ = ["CloudInit", "make_seed", "seed_files"]


async def make_seed(
    path: str | os.PathLike[str], init: CloudInit, *, replace: bool = False
) -> Path:
    """Write the seed for *init* to *path*, readable by its owner alone; gives its absolute path.

    Written beside its place and moved into it whole.  A file at *path* is an error
    unless *replace*.  Raises SpecInvalid with all that is wrong in *init*, HostLacks
    without pycdlib, ImageFailed when it cannot be written.  Takes milliseconds;
    cancelled or failed, *path* is as it was.
    """
    image = await trio.to_thread.run_sync(_iso, seed_files(init))
    async with new_image(path, "raw", replace=replace, private=True) as draft:
        await trio.to_thread.run_sync(_write, draft, image)
    return draft.target


def _write(draft: Draft, image: bytes) -> None:
    descriptors = tuple(draft.fds.values())
    place = descriptors[0] if descriptors else Path(draft.path)
    try:
        with open(place, "wb", closefd=not descriptors) as file:
            # Its owner's alone: user-data may hold secrets.
            os.fchmod(file.fileno(), 0o600)
            file.write(image)
    except OSError as error:
        raise draft.asked.failed_by(error) from error


def _iso(files: Mapping[str, bytes]) -> bytes:
    try:
        import pycdlib
    except ImportError as error:
        raise HostLacks("pycdlib is not installed", "pip install 'qmpkit[cli]'") from error
    iso = pycdlib.PyCdlib()
    # Linux reads the names from Rock Ridge, others from Joliet; plain ISO has neither - nor case.
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, data) in enumerate(files.items()):
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path=f"/FILE{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    written = io.BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()
