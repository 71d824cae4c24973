"""The image store: base images by their content, pulled, checked, immutable."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import HostLacks
from qmpkit.images.store import gc, index
from qmpkit.images.store.gc import GcReport
from qmpkit.images.store.index import Image
from qmpkit.images.store.layout import OTHER_PLACE, Layout
from qmpkit.images.store.locks import held
from qmpkit.images.store.progress import Pulling
from qmpkit.images.store.pull import Pull
from qmpkit.images.store.sources import resolved
from qmpkit.images.store.unpack import hashed
from qmpkit.process.roots import images_root
from qmpkit.spec.sizes import GIB

__all__ = ["Store", "Verified"]

StrPath = str | os.PathLike[str]


class SourceOptions(TypedDict, total=False):
    """What `Store.pull` takes to find the image, and to judge it."""

    name: str | None
    arch: str | None
    format: str | None
    sha256: str | None
    checksums: StrPath | None
    signature: StrPath | None
    keyring: StrPath | None


class PullOptions(SourceOptions, total=False):
    """What `Store.pull` takes."""

    refresh: bool


@attrs.frozen
class Verified:
    """An image whose content was read: `problem` in words, "" when it is what it was."""

    image: Image
    problem: str

    @property
    def ok(self) -> bool:
        """Whether it is what its digest says."""
        return not self.problem


def _optional(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)


def _place(path: StrPath | None) -> Path:
    return images_root() if path is None else Path(path)


@attrs.frozen
class Store:
    """Base images of this user, at `path`; what is missing of it is made by the first pull.

        store = images.Store()
        image = await store.pull("debian-12")
        await images.overlay("web.qcow2", image.path, image.format)

    `path` None: `$QMPKIT_IMAGES_DIR`, else `.images` in the state directory.  `max_size`:
    bytes that a download, and what is unpacked of it, may have (64 GiB).  `stall`:
    seconds without a byte after which a server's connection is given up (30).  `ca_file`:
    PEM certificates of authorities that https servers may be of, besides those that this
    host trusts (SSL_CERT_FILE and SSL_CERT_DIR say which, as for other programs).

    Images are files with the mode 0444, named by the SHA-256 of their content.  Root may
    write to them all the same: `verify` reads them again.  Overlays that qmpkit makes are
    noted, so that `gc` and `remove` leave their base alone.  Programs and tasks may use
    one store at the same time; a crash of any of them leaves it usable.
    """

    path: Path = attrs.field(default=None, converter=_place)
    max_size: int = attrs.field(default=64 * GIB, kw_only=True)
    stall: float = attrs.field(default=30.0, kw_only=True)
    ca_file: Path | None = attrs.field(default=None, kw_only=True, converter=_optional)

    @property
    def _layout(self) -> Layout:
        return Layout(self.path.absolute())

    async def pull(
        self,
        what: StrPath,
        *,
        name: str | None = None,
        arch: str | None = None,
        format: str | None = None,
        sha256: str | None = None,
        checksums: StrPath | None = None,
        signature: StrPath | None = None,
        keyring: StrPath | None = None,
        refresh: bool = False,
    ) -> Image:
        """Have the image *what* in the store: a name of the catalogue, a URL, or a file.

        *name*: what it is called here; None: its name in the catalogue (with `-ARCH` when
        that is not this host's), else that of the file.  *arch*: for the catalogue; None
        is this host's.  *format*: qcow2 or raw; None: the catalogue's, else by its header.

        *sha256*: 64 digits that the file, as it comes, must have.  *checksums*: a URL or
        file with the sums of its publisher (SHA256SUMS, SHA512SUMS, CHECKSUM, `….sha512`);
        the catalogue has its own.  *keyring*: a file of keys, one of which must have signed
        them, inside or in *signature* (None: `.gpg` added to the name of *checksums*).

        Only what is not here comes over: what is here with that sum, or what its server
        says is the same still.  A download that was broken off is gone on with.  What is
        packed (xz, gzip, bzip2, zstd) is unpacked.  It is looked at before it is in the
        store: one that has a base, or names other files, is refused.  *refresh*: pull it
        anyway, also in the place of a file that was damaged.

        Several who pull the same share one download.  `PullFailed` when it does not come;
        of that `CertificateWrong`, `ChecksumWrong`, `SignatureWrong`, `ImageRefused`.
        `SpecInvalid` when *what* means nothing, or *name* is another image's; `HostLacks`
        without httpx, gpgv, zstd or qemu-img; `ImageInUse` when a QEMU writes to the file.
        Cancelled, a download stays where it is gone on with, and nothing else.
        """
        work = await self._work(
            what,
            refresh=refresh,
            name=name,
            arch=arch,
            format=format,
            sha256=sha256,
            checksums=checksums,
            signature=signature,
            keyring=keyring,
        )
        return await work.run()

    @asynccontextmanager
    async def pulling(
        self, what: StrPath, **options: Unpack[PullOptions]
    ) -> AsyncIterator[Pulling]:
        """`pull` while the block runs, which is told how far it is.

            async with store.pulling("debian-12") as pull:
                async for step in pull:
                    print(step.stage, step.done, step.total)
            print(pull.image.path)

        The stage "done" comes once the image is in the store.  Leaving the block waits
        for that; an exception in the block, and a cancellation, end the pull.  A failure
        of the pull cancels the block and is raised.
        """
        work = await self._work(what, **options)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work.run)
                yield work.pulling
        except BaseExceptionGroup as group:
            raise_collapsed(group)

    async def _work(
        self, what: StrPath, *, refresh: bool = False, **options: Unpack[SourceOptions]
    ) -> Pull:
        source = await trio.to_thread.run_sync(partial(resolved, what, **options))
        return Pull(
            layout=self._layout,
            source=source,
            max_size=self.max_size,
            stall=self.stall,
            ca_file=self.ca_file,
            refresh=refresh,
            pulling=Pulling(),
        )

    async def images(self) -> tuple[Image, ...]:
        """Every image in the store, the latest first; none when nothing was ever pulled.

        `JournalNewer` when a later qmpkit has written one of its records; `HostLacks`, as
        from all that follows, when its files cannot be read or written.
        """
        with self._told():
            return await trio.to_thread.run_sync(index.images, self._layout)

    async def find(self, name: str) -> Image:
        """The image of that name, or of that digest (`sha256:` in front or not, 8 digits or more).

        `SpecInvalid` when there is none, or more than one digest begins so.
        """
        with self._told():
            return await trio.to_thread.run_sync(index.find, self._layout, name)

    async def remove(
        self, name: str, *, gone: bool = False, look_in: Iterable[StrPath] = ()
    ) -> Image:
        """Take the image of that name or digest out of the store; it is given back as it was.

        `ImageInUse` when an overlay is on it, or may be: also one that is not where it was
        made, unless *gone* says that such were deleted and not moved.  *look_in* as in `gc`.
        `SpecInvalid` when there is no such image.  A cancellation strikes before it, while
        folders are looked into, or after it.
        """
        folders = tuple(map(Path, look_in))
        work = partial(gc.remove, self._layout, name, gone=gone, look_in=folders)
        async with self._locked():
            return await trio.to_thread.run_sync(work)

    async def gc(
        self, *, gone: bool = False, look_in: Iterable[StrPath] = (), dry_run: bool = False
    ) -> GcReport:
        """Remove the images that have lost their name to a later one and that nothing needs.

        And what crashes and broken-off downloads have left.  An image stays while an
        overlay is on it or may be: one that was noted when it was made, a file beside
        those, a disk of a kept machine; and while a process has it open.  In doubt it
        stays: the report says why.  *gone* as in `remove`.  *dry_run*: only tell.

        An overlay that was made by plain qemu-img, copied or moved to elsewhere is not known:
        *look_in* are folders that are searched for such, with all below them, by the images'
        headers (qcow2, qcow, qed and vmdk; not the differencing images of vpc and vhdx), and
        those that are found are known from then on.  `HostLacks` when anything in there
        cannot be looked into.
        A cancellation strikes before it, while folders are looked into, or after it.
        """
        folders = tuple(map(Path, look_in))
        work = partial(gc.collect, self._layout, gone=gone, dry_run=dry_run, look_in=folders)
        async with self._locked():
            return await trio.to_thread.run_sync(work)

    async def verify(self, name: str | None = None) -> tuple[Verified, ...]:
        """Read the image of that name or digest, None: every one, and compare it with its digest.

        A damaged one is mended by `pull` with `refresh`.  `SpecInvalid` when there is none
        of that name.  As long as reading takes; a cancellation ends it within moments.
        """
        every = await self.images() if name is None else (await self.find(name),)
        return tuple([await trio.to_thread.run_sync(_verified, image) for image in every])

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(self._layout.make)
        with self._told():
            async with held(self._layout.lock):
                yield

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the kernel refuses is this host's."""
        try:
            yield
        except OSError as error:
            said, file = error.strerror or str(error), error.filename
            if file is not None and not Path(os.fsdecode(file)).is_relative_to(self._layout.root):
                what = f"{os.fsdecode(file)!r} cannot be looked into: {said}"
                raise HostLacks(
                    what, "an overlay may be there: name folders you may read"
                ) from error
            what = f"the image store {str(self.path)!r} cannot be used: {said}"
            raise HostLacks(what, OTHER_PLACE) from error


def _verified(image: Image) -> Verified:
    try:
        digest = hashed(image.path, {"sha256"})["sha256"]
    except OSError as error:
        return Verified(image, f"it cannot be read: {(error.strerror or str(error)).lower()}")
    return Verified(image, "" if digest == image.digest else "its content is another one by now")
