"""What the first word of `qmpkit run` means: a profile, or a disk image and what goes with it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit._running import opened
from qmpkit.cli.exits import Refusal
from qmpkit.cli.listing import chosen_spec, overridden
from qmpkit.cli.scratch import Scratch, scratch
from qmpkit.cli.seeding import seed_disk
from qmpkit.cli.sizes import human_size
from qmpkit.cli.stored import stored
from qmpkit.cli.talk import talk
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.headers import read_header
from qmpkit.images.look import Looked, image_fault, look_at
from qmpkit.images.machine import SSH, Wishes, machine_around
from qmpkit.images.store.uses import homes_of
from qmpkit.machine.launch import LaunchOptions
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Forward, to_forward
from qmpkit.spec.profile import profile_names
from qmpkit.vm import VM

__all__ = ["Chosen", "ImageOptions", "chosen_machine", "means_image"]

_THROWN_AWAY = (
    "changes are thrown away at the end "
    "(--keep FILE keeps them in an overlay, --write in the image)"
)


@attrs.frozen(kw_only=True)
class ImageOptions:
    """The options of `qmpkit run` that belong to a disk image."""

    write: bool = False
    keep: Path | None = None
    format: str | None = None
    arch: str | None = None
    firmware: str | None = None
    user: str | None = None
    ssh_key: tuple[Path, ...] = ()
    port: tuple[str, ...] = ()
    allow: tuple[Path, ...] = ()

    def given(self) -> list[str]:
        """Those that are set, as they are written: `--ssh-key`."""
        names = [field.name for field in attrs.fields(ImageOptions) if getattr(self, field.name)]
        return [f"--{name.replace('_', '-')}" for name in names]


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


@attrs.frozen
class Chosen:
    """A machine to run.

    `has_started` wants to be called once QEMU has its files open, and `start`, when it is
    there, starts it, paused.
    """

    spec: MachineSpec
    user: str | None = None
    from_image: bool = False
    has_started: Callable[[], Awaitable[None]] = _nothing
    start: Callable[[LaunchOptions], AbstractAsyncContextManager[VM]] | None = None

    def opened(self, options: LaunchOptions, logs: Path | None) -> AbstractAsyncContextManager[VM]:
        """It runs as long as the block does, and its death cancels nobody."""
        if self.start is not None:
            return self.start(options)
        return opened(self.spec, logs=logs, options=options)


@asynccontextmanager
async def chosen_machine(
    word: str, overrides: tuple[str, ...], options: ImageOptions, *, fate: str = _THROWN_AWAY
) -> AsyncIterator[Chosen]:
    """The machine that *word* means, with what has to exist while it starts.

    *fate*: what becomes of the guest's changes of an image that is not written to.
    """
    word, overrides = await _of_the_store(word, overrides)
    if await trio.to_thread.run_sync(means_image, word):
        async with scratch() as folder:
            yield await _around_image(word, overrides, options, folder, fate)
        return
    if words := options.given():
        fit = "fits" if len(words) == 1 else "fit"
        told = f"{', '.join(words)} {fit} a disk image, and {word!r} is a profile"
        raise Refusal(f"{told}. Cure: --set changes a profile")
    yield Chosen(chosen_spec(word, overrides))


async def _of_the_store(word: str, overrides: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The path of an image of the store for its name, which is the machine's then."""
    if not word or word.endswith(".toml") or "\0" in word:
        return word, overrides
    if word in await trio.to_thread.run_sync(profile_names):
        return word, overrides
    path = await stored(Path(word))
    if path == Path(word):
        return word, overrides
    return str(path), (f"name={json.dumps(word)}", *overrides)


def means_image(word: str) -> bool:
    """Whether *word* is a disk image and not a profile; blocking, raises when it is neither."""
    if not word:
        raise Refusal("the name is empty: name a disk image, a profile or a profile's file")
    if word.endswith(".toml") or ("/" not in word and word in profile_names()):
        return False
    path = Path(word)
    if "\0" in word or not (path.suffix or os.path.lexists(path)):
        return False
    if (fault := image_fault(path)) is not None:
        raise SpecInvalid([fault], word)
    if not _is_text(path):
        return True
    if "/" in word and not path.suffix:  # a profile needs no ending when its place is given
        return False
    raise Refusal(f"{word!r} is a text, neither a disk image nor a profile, which ends in .toml")


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(512)
    # A multi-byte character may be cut at the end; and a format of texts has a magic.
    plain = b"\0" not in start and "\ufffd" not in start.decode(errors="replace")[:-1]
    return plain and not read_header(path).format


def _forwards(ports: tuple[str, ...]) -> tuple[Forward, ...]:
    """What `--port` says, and a way to the guest's ssh when it says none."""
    try:
        told = tuple(map(to_forward, ports))
    except ValueError as error:
        raise SpecInvalid([Fault("--port", str(error), "for example 8080:80")]) from None
    return told if any(forward.guest == SSH.guest for forward in told) else (SSH, *told)


async def _around_image(
    word: str, overrides: tuple[str, ...], options: ImageOptions, folder: Scratch, fate: str
) -> Chosen:
    allowed = options.allow or None
    looked = await look_at(word, format=options.format, option="--format", allowed=allowed)
    if options.write and not looked.is_cd:
        await trio.to_thread.run_sync(_check_writable, looked.path)
    overlay = options.keep
    if overlay is None and not options.write and not looked.is_cd:
        overlay = await folder.path("disk.qcow2")
    wishes = Wishes(
        overlay=overlay,
        write=options.write,
        arch=options.arch,
        firmware=options.firmware,
        forwards=_forwards(options.port),
        allowed=options.allow,
    )
    spec = await trio.to_thread.run_sync(machine_around, looked, wishes)
    if options.user is not None or options.ssh_key:
        target = await folder.path("seed.iso")
        seed = await seed_disk(target, spec.name, options.user, options.ssh_key)
        spec = attrs.evolve(spec, disks=[*spec.disks, seed])
    spec = overridden(spec, overrides, word)
    _tell(looked, spec, options, fate)
    return Chosen(spec, user=options.user, from_image=True, has_started=folder.remove)


def _check_writable(image: Path) -> None:
    if homes_of([image]):  # root may write to it
        what = f"{str(image)!r} is in the image store, where others build on it"
        raise SpecInvalid([Fault("--write", what, "--keep FILE keeps the changes in an overlay")])
    if not os.access(image, os.W_OK, effective_ids=True):
        what = f"{str(image)!r} may not be written"
        raise SpecInvalid(
            [Fault("--write", what, "leave --write out: the image then stays as it is")]
        )


def _tell(looked: Looked, spec: MachineSpec, options: ImageOptions, fate: str) -> None:
    guessed = "it has no header" if looked.format == "raw" else "from its header"
    how = "as stated" if options.format else guessed
    size = human_size(looked.info.virtual_size)
    what = f"{looked.path}, {looked.format} ({how}), {size}"
    talk.note(f"{spec.name}: {what}, booted by {_loader(spec)}")
    if looked.info.backing:
        talk.note(f"{spec.name}: it is an overlay itself and shows {looked.info.backing} below")
    if looked.is_cd:
        if not looked.boot.bios and spec.kernel is None:
            talk.warn(f"{spec.name}: it does not boot: the CD has no loader (El Torito)")
        talk.note(f"{spec.name}: what a CD shows on a screen only, this console does not show")
        return
    if not (looked.boot.bios or looked.boot.uefi or spec.kernel):
        talk.warn(
            f"{spec.name}: it may not boot: it has neither boot code nor an EFI system partition"
        )
    if looked.info.data_file:
        talk.note(f"{spec.name}: its content is in {looked.info.data_file}")
    if options.write:
        talk.note(f"{spec.name}: the guest writes into the image itself")
    elif options.keep is not None:
        talk.note(f"{spec.name}: changes are kept in {options.keep}; the image stays as it is")
    else:
        talk.note(f"{spec.name}: {fate}")


def _loader(spec: MachineSpec) -> str:
    if spec.kernel is not None:
        return "a kernel of its own"
    if spec.firmware is None:
        return "BIOS"
    return "UEFI" if isinstance(spec.firmware, Uefi) else "firmware of its own"
