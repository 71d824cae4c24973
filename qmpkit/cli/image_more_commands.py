"""More of `qmpkit image …` as the shell sees it: bases, maps, snapshots, bitmaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from qmpkit.cli.image_words import (
    Allowed,
    AsJson,
    Image,
    LookIn,
    Readable,
    SecretFile,
    StatedFormat,
    Yes,
    file_word,
)

__all__ = ["BITMAP", "MORE", "SNAPSHOT"]

SnapshotName = Annotated[str, Parameter(help="The snapshot's name or id.")]
BitmapName = Annotated[str, Parameter(help="The bitmap's name.")]


async def rebase(
    file: Image,
    base: Annotated[Path | None, file_word("The image to put it on.")] = None,
    /,
    *,
    format: StatedFormat = None,
    base_format: Annotated[
        Readable | None, Parameter(help="The new base's format. Default: what its header says.")
    ] = None,
    no_base: Annotated[bool, Parameter(help="On none: it holds all of its content.")] = False,
    unsafe: Annotated[
        bool,
        Parameter(help="Change the name alone: for a base that was moved. Any other is damage."),
    ] = False,
    secret_file: SecretFile = None,
    allow: Allowed = None,
) -> None:
    """Put an overlay on another base.

    What a guest sees stays the same: what differs is copied into the overlay first.
    """
    from qmpkit.cli.image_layers import rebase

    await rebase(
        file, base, format, base_format, secret_file, allow, no_base=no_base, unsafe=unsafe
    )


async def commit(
    file: Image,
    /,
    *,
    format: StatedFormat = None,
    shared: Annotated[bool, Parameter(help="Other overlays of the base may break.")] = False,
    keep: Annotated[bool, Parameter(help="Leave the overlay full, to be removed.")] = False,
    look_in: LookIn = None,
    secret_file: SecretFile = None,
    allow: Allowed = None,
) -> None:
    """Write what an overlay holds into its base, and empty it.

    Refused while another overlay of that base is beside one of the two, or where --look-in
    says: it would break. One anywhere else is not seen.
    """
    from qmpkit.cli.image_layers import commit

    await commit(file, format, secret_file, allow, look_in or (), shared=shared, keep=keep)


async def compare(
    one: Image,
    other: Annotated[Path, file_word("The image to compare it with.")],
    /,
    *,
    format: StatedFormat = None,
    other_format: Annotated[
        Readable | None, Parameter(help="The other's format. Default: what its header says.")
    ] = None,
    secret_file: SecretFile = None,
    allow: Allowed = None,
    json: AsJson = False,
) -> int:
    """Say whether two images show a guest the same.

    Exit status 0: they do; 1: they do not.
    """
    from qmpkit.cli.image_layers import compare

    return await compare(one, other, format, other_format, secret_file, allow, as_json=json)


async def map(
    file: Image,
    /,
    *,
    format: StatedFormat = None,
    start: Annotated[str, Parameter(help="Where to begin. Default: 0.")] = "0",
    length: Annotated[str | None, Parameter(help="How much. Default: to the end.")] = None,
    secret_file: SecretFile = None,
    allow: Allowed = None,
    json: AsJson = False,
) -> None:
    """Show which parts of an image hold something, and in which layer."""
    from qmpkit.cli.image_looks import show_map

    await show_map(file, format, start, length, secret_file, allow, as_json=json)


async def measure(
    file: Image,
    /,
    *,
    to: Annotated[
        Literal["qcow2", "raw"], Parameter(help="The copy's format. Default: qcow2.")
    ] = "qcow2",
    format: StatedFormat = None,
    secret_file: SecretFile = None,
    allow: Allowed = None,
    json: AsJson = False,
) -> None:
    """Show how much disk space a copy would take."""
    from qmpkit.cli.image_looks import measure

    await measure(file, format, to, secret_file, allow, as_json=json)


async def bench(
    file: Image,
    /,
    *,
    format: StatedFormat = None,
    requests: Annotated[int, Parameter(help="How many. Default: 75000.")] = 75_000,
    size: Annotated[str, Parameter(help="Bytes in each. Default: 4KiB.")] = "4KiB",
    depth: Annotated[int, Parameter(help="How many at once. Default: 64.")] = 64,
    overwrite: Annotated[
        bool, Parameter(help="Write instead of reading: what it holds is lost.")
    ] = False,
    secret_file: SecretFile = None,
    yes: Yes = False,
    json: AsJson = False,
) -> int:
    """Measure how fast an image is read, or written."""
    from qmpkit.cli.image_looks import bench

    return await bench(
        file,
        format,
        requests,
        size,
        depth,
        secret_file,
        overwrite=overwrite,
        yes=yes,
        as_json=json,
    )


async def snapshot_list(
    file: Image, /, *, format: StatedFormat = None, json: AsJson = False
) -> None:
    """List the snapshots in an image."""
    from qmpkit.cli.image_inside import list_snapshots

    await list_snapshots(file, format, as_json=json)


async def snapshot_create(
    file: Image,
    name: Annotated[str, Parameter(help="The new snapshot's name; not a number.")],
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Keep the present content as a snapshot in the image."""
    from qmpkit.cli.image_inside import create_snapshot

    await create_snapshot(file, name, format, secret_file)


async def snapshot_apply(
    file: Image,
    snapshot: SnapshotName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
    yes: Yes = False,
) -> int:
    """Go back to a snapshot: what was written since is lost."""
    from qmpkit.cli.image_inside import apply_snapshot

    return await apply_snapshot(file, snapshot, format, secret_file, yes=yes)


async def snapshot_delete(
    file: Image,
    snapshot: SnapshotName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Delete a snapshot; the present content stays."""
    from qmpkit.cli.image_inside import delete_snapshot

    await delete_snapshot(file, snapshot, format, secret_file)


async def bitmap_list(file: Image, /, *, format: StatedFormat = None, json: AsJson = False) -> None:
    """List the dirty bitmaps in an image."""
    from qmpkit.cli.image_inside import list_bitmaps

    await list_bitmaps(file, format, as_json=json)


async def bitmap_add(
    file: Image,
    name: BitmapName,
    /,
    *,
    format: StatedFormat = None,
    granularity: Annotated[str, Parameter(help="Bytes for a bit: 4KiB, …")] = "64KiB",
    disabled: Annotated[bool, Parameter(help="It notes nothing until it is enabled.")] = False,
    secret_file: SecretFile = None,
) -> None:
    """Add a bitmap, which notes what is written, for incremental backups."""
    from qmpkit.cli.image_inside import add_bitmap

    await add_bitmap(file, name, format, granularity, secret_file, disabled=disabled)


async def bitmap_remove(
    file: Image,
    name: BitmapName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Remove a bitmap."""
    from qmpkit.cli.image_inside import change_bitmap

    await change_bitmap(file, name, "remove", format, secret_file)


async def bitmap_clear(
    file: Image,
    name: BitmapName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Forget what a bitmap has noted."""
    from qmpkit.cli.image_inside import change_bitmap

    await change_bitmap(file, name, "clear", format, secret_file)


async def bitmap_enable(
    file: Image,
    name: BitmapName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Let a bitmap note what is written from now on."""
    from qmpkit.cli.image_inside import change_bitmap

    await change_bitmap(file, name, "enable", format, secret_file)


async def bitmap_disable(
    file: Image,
    name: BitmapName,
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Let a bitmap note no more."""
    from qmpkit.cli.image_inside import change_bitmap

    await change_bitmap(file, name, "disable", format, secret_file)


async def bitmap_merge(
    file: Image,
    name: BitmapName,
    source: Annotated[str, Parameter(help="The bitmap whose notes are added.")],
    /,
    *,
    format: StatedFormat = None,
    secret_file: SecretFile = None,
) -> None:
    """Note in a bitmap all that another of the same image notes, too."""
    from qmpkit.cli.image_inside import merge_bitmap

    await merge_bitmap(file, name, source, format, secret_file)


SNAPSHOT: dict[str, Callable[..., Any]] = {
    "list": snapshot_list,
    "create": snapshot_create,
    "apply": snapshot_apply,
    "delete": snapshot_delete,
}
BITMAP: dict[str, Callable[..., Any]] = {
    "list": bitmap_list,
    "add": bitmap_add,
    "remove": bitmap_remove,
    "clear": bitmap_clear,
    "enable": bitmap_enable,
    "disable": bitmap_disable,
    "merge": bitmap_merge,
}
MORE: tuple[Callable[..., Any], ...] = (rebase, commit, compare, map, measure, bench)
