"""Disk images through qemu-img, the store of base images, and cloud-init's seeds.

`create`, `overlay`; `info`, `chain`, `extents`, `measure`, `compare`; `check`, `resize`;
`convert`, `converting`; `rebase`, `commit`, `amend`; snapshots, bitmaps and keys of images that
nobody uses; `Store`; `bench`; `limiter`; `make_seed`; `machine_for`.
"""

from typing import TYPE_CHECKING

from qmpkit._lazy import lazily

if TYPE_CHECKING:
    from qmpkit.host.chain import MAX_CHAIN as MAX_CHAIN
    from qmpkit.host.holders import Holder as Holder
    from qmpkit.images.amending import amend as amend
    from qmpkit.images.benching import Bench as Bench
    from qmpkit.images.benching import bench as bench
    from qmpkit.images.bitmaps import add_bitmap as add_bitmap
    from qmpkit.images.bitmaps import change_bitmap as change_bitmap
    from qmpkit.images.bitmaps import merge_bitmap as merge_bitmap
    from qmpkit.images.checking import CheckReport as CheckReport
    from qmpkit.images.checking import check as check
    from qmpkit.images.committing import commit as commit
    from qmpkit.images.comparing import Comparison as Comparison
    from qmpkit.images.comparing import compare as compare
    from qmpkit.images.conversion import convert as convert
    from qmpkit.images.conversion import converting as converting
    from qmpkit.images.details import Bitmap as Bitmap
    from qmpkit.images.details import ImageInfo as ImageInfo
    from qmpkit.images.details import Snapshot as Snapshot
    from qmpkit.images.details import chain as chain
    from qmpkit.images.details import info as info
    from qmpkit.images.key_slots import add_key as add_key
    from qmpkit.images.key_slots import change_key as change_key
    from qmpkit.images.key_slots import remove_key as remove_key
    from qmpkit.images.machine import machine_for as machine_for
    from qmpkit.images.mapping import Extent as Extent
    from qmpkit.images.mapping import Measured as Measured
    from qmpkit.images.mapping import extents as extents
    from qmpkit.images.mapping import measure as measure
    from qmpkit.images.new import create as create
    from qmpkit.images.new import overlay as overlay
    from qmpkit.images.options import Options as Options
    from qmpkit.images.progress import Progress as Progress
    from qmpkit.images.rebasing import rebase as rebase
    from qmpkit.images.resizing import resize as resize
    from qmpkit.images.seed import CloudInit as CloudInit
    from qmpkit.images.seed import make_seed as make_seed
    from qmpkit.images.snapshots import apply_snapshot as apply_snapshot
    from qmpkit.images.snapshots import create_snapshot as create_snapshot
    from qmpkit.images.snapshots import delete_snapshot as delete_snapshot
    from qmpkit.images.store.gc import GcReport as GcReport
    from qmpkit.images.store.gc import Kept as Kept
    from qmpkit.images.store.index import Image as Image
    from qmpkit.images.store.progress import Pulling as Pulling
    from qmpkit.images.store.progress import PullStep as PullStep
    from qmpkit.images.store.store import Store as Store
    from qmpkit.images.store.store import Verified as Verified
    from qmpkit.images.tool import INFO_LIMITS as INFO_LIMITS
    from qmpkit.images.turns import limiter as limiter
    from qmpkit.process.limits import Limits as Limits

_MODULES = {
    "qmpkit.host.chain": "MAX_CHAIN",
    "qmpkit.host.holders": "Holder",
    "qmpkit.images.amending": "amend",
    "qmpkit.images.benching": "Bench bench",
    "qmpkit.images.bitmaps": "add_bitmap change_bitmap merge_bitmap",
    "qmpkit.images.checking": "CheckReport check",
    "qmpkit.images.committing": "commit",
    "qmpkit.images.comparing": "Comparison compare",
    "qmpkit.images.conversion": "convert converting",
    "qmpkit.images.details": "Bitmap ImageInfo Snapshot chain info",
    "qmpkit.images.key_slots": "add_key change_key remove_key",
    "qmpkit.images.machine": "machine_for",
    "qmpkit.images.mapping": "Extent Measured extents measure",
    "qmpkit.images.new": "create overlay",
    "qmpkit.images.options": "Options",
    "qmpkit.images.progress": "Progress",
    "qmpkit.images.rebasing": "rebase",
    "qmpkit.images.resizing": "resize",
    "qmpkit.images.seed": "CloudInit make_seed",
    "qmpkit.images.snapshots": "apply_snapshot create_snapshot delete_snapshot",
    "qmpkit.images.store.gc": "GcReport Kept",
    "qmpkit.images.store.index": "Image",
    "qmpkit.images.store.progress": "Pulling PullStep",
    "qmpkit.images.store.store": "Store Verified",
    "qmpkit.images.tool": "INFO_LIMITS",
    "qmpkit.images.turns": "limiter",
    "qmpkit.process.limits": "Limits",
}

__getattr__, __all__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
