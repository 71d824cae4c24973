"""A change of a machine's disks whose program died: is it done, or is it to be undone?

Either is found out from what is there: the block nodes of a QEMU that lives, the images of
one that does not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio

from qmpkit.host.chain import walk_chain
from qmpkit.host.headers import has_no_data, read_header
from qmpkit.images.checking import check
from qmpkit.images.details import info
from qmpkit.images.snapshots import delete_snapshot
from qmpkit.machine.ledger import Change
from qmpkit.machine.saved_state import cancel_saving
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.disks import limit_again
from qmpkit.operations.block.graph import graph_of
from qmpkit.operations.block.inner_snapshots import remove_tag
from qmpkit.operations.block.layers import remove_files, remove_nodes
from qmpkit.operations.block.media import settle_drive
from qmpkit.operations.block.pull_tls import TLS_ID
from qmpkit.operations.jobs import JobState, discard_job, jobs_of
from qmpkit.operations.stillness import go_on
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.machine import MachineSpec

__all__ = ["own_files", "recover", "settled", "untagged"]

_BEGINNING = 1 << 16
_EMPTY = 1 << 20  # bytes that a layer takes at most that nothing was written to


async def recover(machine: Changeable, change: Change) -> MachineSpec:
    """End or undo *change* on a machine that lives; what it is started from the next time.

    A job that only waits to be let do what is on record is let; every other one is
    cancelled.  `machine.spec` is set, and nothing of the change is left that is not needed.
    """
    if change.memory:
        await cancel_saving(machine)
    if change.serving:  # first: what is served holds its nodes
        with suppress(CommandRefused):
            await machine.execute("nbd-server-stop")
        with suppress(CommandRefused):
            await machine.execute("object-del", {"id": TLS_ID})
    # One whose new place was taken away meanwhile is not to be let into it.
    sure = change.sure and await trio.to_thread.run_sync(_are_there, change.files)
    with machine.subscribe("JOB_STATUS_CHANGE", where={"id": change.job}) as changes:
        for state in await jobs_of(machine):
            if state.id == change.job and state.status == "pending" and sure:
                with suppress(CommandRefused):
                    await machine.execute("job-finalize", {"id": change.job})
                while _unfinished(change.job, await jobs_of(machine)):
                    await changes.next()
        if change.job:
            await discard_job(machine, change.job, changes)
    for name in change.jobs:
        await discard_job(machine, name)
    graph = await graph_of(machine)
    used = {layer.file for disk in graph.disks for layer in graph.chain(disk)}
    done = _is_done(change, used)
    if change.stands:
        await go_on(machine, ran=change.halted)
    if change.drive:
        done = await settle_drive(machine, change, graph)
    machine.spec = change.spec if done else change.begun
    await limit_again(machine, change)
    for nodes in (change.nodes, change.leaving):  # those in use stay
        await remove_nodes(machine, nodes)
    if change.tag and not done:
        await remove_tag(machine, change.tag)
    ours = await trio.to_thread.run_sync(own_files, change)
    await remove_files(machine, change.obsolete if done else ours)
    return machine.spec


def own_files(change: Change) -> list[str]:
    """Of the files that were to be made, those that we have made.  Blocking.

    Before their numbers were written down, only an image or a file that holds nothing can be
    told from one that somebody else has put there meanwhile.
    """
    inodes = dict(zip(change.made, change.inodes, strict=False))
    return [file for file in change.made if _is_ours(Path(file), inodes.get(file))]


def _is_ours(file: Path, inode: int | None) -> bool:
    try:
        found = file.lstat()
        if inode is not None:
            return found.st_ino == inode
        if not found.st_size:
            return True
        if found.st_blocks * 512 > _EMPTY:
            return False
        header = read_header(file)
        if header.format == "qcow2":
            return bool(header.backing) or has_no_data(file)
        return not header.format and _is_blank(file)
    except OSError:
        return False


def _is_blank(file: Path) -> bool:
    """Whether a raw image is one hole, but for its beginning, which qemu-img writes."""
    with file.open("rb") as image:
        if any(image.read(_BEGINNING)):
            return False
        try:
            os.lseek(image.fileno(), _BEGINNING, os.SEEK_DATA)
        except OSError as error:
            return error.errno == errno.ENXIO
    return False


def _are_there(files: Iterable[str]) -> bool:
    return all(os.path.exists(file) for file in files)  # noqa: PTH110


def _unfinished(job: str, states: Iterable[JobState]) -> bool:
    return any(state.id == job and state.status != "concluded" for state in states)


def settled(change: Change) -> MachineSpec:
    """End or undo *change* of a machine whose QEMU is gone.  Blocking; OSError when it cannot be.

    Files that the result does not need are removed.
    """
    done = _are_there(change.made) if change.sure else _is_done(change, _used_by(change.begun))
    for file in change.obsolete if done else own_files(change):
        with suppress(FileNotFoundError):
            os.unlink(file)  # noqa: PTH108
    return change.spec if done else change.begun


async def untagged(change: Change) -> None:
    """Take a snapshot that came to nothing out of the images of a machine that is down.

    The space, too, of what was written of it: as much as the machine has RAM.
    ImageFailed or ImageInUse when one cannot be changed.
    """
    for disk in change.begun.disks:
        if disk.is_readonly or disk.format != "qcow2":
            continue
        held = (await info(disk.file, format="qcow2")).snapshots
        if any(known.name == change.tag for known in held):
            await delete_snapshot(disk.file, change.tag)
        await check(disk.file, "qcow2", repair="leaks")


def _used_by(spec: MachineSpec) -> set[str]:
    chains = (walk_chain(Path(it.file), it.format) for it in spec.disks if not it.is_empty)
    return {str(layer.path.resolve()) for chain in chains for layer in chain.layers}


def _is_done(change: Change, used: set[str]) -> bool:
    """Whether the machine uses what was made for it, and what it was to leave no more."""
    if not change.files and not change.obsolete:
        return False
    known = used | {os.path.realpath(file) for file in used}
    return all(_at(file, known) for file in change.files) and not any(
        _at(file, known) for file in change.obsolete
    )


def _at(file: str, known: set[str]) -> bool:
    return file in known or os.path.realpath(file) in known
