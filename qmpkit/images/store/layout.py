"""Where the store keeps what.

    sha256/<digest>.qcow2     the images, 0444, by the SHA-256 of what they hold
    records/<digest>.json     what is known of each: an image is in the store when this is there
    names/<name>              the digest that a name means
    uses/<digest>/….json      the overlays that were made on it
    partial/<key>/            a pull under way, or broken off; locked while somebody works on it
    lock                      held while any of that but `partial` is changed

An image is put in its place before its record, and goes after it.  So a crash leaves an
image with its record, or a file without one, which the next `gc` removes.

The store is not in the cache directory, which anybody may empty: overlays would lose
their content with their base.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from qmpkit.errors import HostLacks

__all__ = ["OTHER_PLACE", "Layout"]

OTHER_PLACE = "name another place: QMPKIT_IMAGES_DIR=…"
"""The cure where a store cannot be."""


@attrs.frozen
class Layout:
    """The places in a store; nothing is made by naming them."""

    root: Path

    @property
    def blobs(self) -> Path:
        """The images."""
        return self.root / "sha256"

    @property
    def records(self) -> Path:
        """What is known of each."""
        return self.root / "records"

    @property
    def names(self) -> Path:
        """What each name means."""
        return self.root / "names"

    @property
    def uses(self) -> Path:
        """The overlays of each."""
        return self.root / "uses"

    @property
    def partial(self) -> Path:
        """Pulls under way."""
        return self.root / "partial"

    @property
    def lock(self) -> Path:
        """Held by whoever changes the store."""
        return self.root / "lock"

    def blob(self, digest: str, format: str) -> Path:
        """Where the image with that content is, or would be."""
        return self.blobs / f"{digest}.{format}"

    def record(self, digest: str) -> Path:
        """Where its record is, or would be."""
        return self.records / f"{digest}.json"

    def make(self) -> None:
        """Make the directories (0700) that are missing; blocking, HostLacks when it cannot be."""
        try:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (
                self.root,
                self.blobs,
                self.records,
                self.names,
                self.uses,
                self.partial,
            ):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            what = f"cannot make the image store {str(self.root)!r}: {error.strerror}"
            raise HostLacks(what, OTHER_PLACE) from error
