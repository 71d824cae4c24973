"""Images that may not be opened: a QEMU has them, or their chain is not sound.  Blocking."""

from __future__ import annotations

from qmpkit.errors import ImageInUse
from qmpkit.host.chain import Chain, Folders, walk_chain
from qmpkit.host.holders import holders_of, image_locked
from qmpkit.images.guessed import refuse_guessed_bases
from qmpkit.images.store.uses import IN_STORE, homes_of
from qmpkit.images.tool import Asked, cure_of

__all__ = ["Allowed", "checked_chain", "refuse_used", "sound_chain"]

Allowed = Folders | None

_STOP = "stop that machine first"


def refuse_used(asked: Asked, *, for_writing: bool, cure: str = _STOP) -> None:
    """`ImageInUse` when a QEMU writes to the image, or, *for_writing*, relies on its content.

    qemu-img would refuse most of it too, but cannot name the holder.  `ImageFailed`
    when the image cannot be opened, or is of the image store and not to be written to.
    """
    path = asked.path
    if for_writing and homes_of([path]):  # root may write to it all the same
        raise asked.failed(IN_STORE, "copy it first")
    try:
        locked = image_locked(path, for_writing=for_writing)
    except OSError as error:
        raise asked.failed_by(error) from error
    if locked:
        holders = ", ".join(map(str, holders_of(path))) or "another process"
        doing = "has it open" if for_writing else "writes to it"
        raise ImageInUse(str(path), asked.doing, f"{holders} {doing}", cure)


def checked_chain(asked: Asked, format: str, allowed: Allowed = None) -> Chain:
    """The chain of the image, which is sound and which nobody writes to."""
    chain = sound_chain(asked, format, allowed)
    for layer in chain.layers:
        refuse_used(Asked(asked.doing, layer.path), for_writing=False)
    return chain


def sound_chain(asked: Asked, format: str, allowed: Allowed = None) -> Chain:
    """The chain of the image, of plain files down to its end; before any program opens it.

    *allowed*: folders in which those files must be, None for any.
    """
    chain = walk_chain(asked.path, format, allowed)
    if (fault := chain.broken or chain.outside) is not None:
        raise asked.failed(fault.why, fault.cure or cure_of(fault.why))
    refuse_guessed_bases(asked, chain)
    return chain
