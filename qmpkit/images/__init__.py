"""Disk images through qemu-img, the store of base images, and cloud-init's seeds.

`create`, `overlay`; `info`, `chain`, `extents`, `measure`, `compare`; `check`, `resize`;
`convert`, `converting`; `rebase`, `commit`, `amend`; snapshots, bitmaps and keys of images that
nobody uses; `Store`; `bench`; `limiter`; `make_seed`; `machine_for`.
"""

from qmpkit.host.chain import MAX_CHAIN
from qmpkit.host.holders import Holder
from qmpkit.images.amending import amend
from qmpkit.images.benching import Bench, bench
from qmpkit.images.bitmaps import add_bitmap, change_bitmap, merge_bitmap
from qmpkit.images.checking import CheckReport, check
from qmpkit.images.committing import commit
from qmpkit.images.comparing import Comparison, compare
from qmpkit.images.conversion import convert, converting
from qmpkit.images.details import Bitmap, ImageInfo, Snapshot, chain, info
from qmpkit.images.key_slots import add_key, change_key, remove_key
from qmpkit.images.machine import machine_for
from qmpkit.images.mapping import Extent, Measured, extents, measure
from qmpkit.images.new import create, overlay
from qmpkit.images.options import Options
from qmpkit.images.progress import Progress
from qmpkit.images.rebasing import rebase
from qmpkit.images.resizing import resize
from qmpkit.images.seed import CloudInit, make_seed
from qmpkit.images.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from qmpkit.images.store.gc import GcReport, Kept
from qmpkit.images.store.index import Image
from qmpkit.images.store.progress import Pulling, PullStep
from qmpkit.images.store.store import Store, Verified
from qmpkit.images.tool import INFO_LIMITS
from qmpkit.images.turns import limiter
from qmpkit.process.limits import Limits

__all__ = [
    "INFO_LIMITS",
    "MAX_CHAIN",
    "Bench",
    "Bitmap",
    "CheckReport",
    "CloudInit",
    "GcReport",
    "Comparison",
    "Extent",
    "Holder",
    "Image",
    "ImageInfo",
    "Kept",
    "Limits",
    "Measured",
    "Options",
    "Progress",
    "PullStep",
    "Pulling",
    "Snapshot",
    "Store",
    "Verified",
    "add_bitmap",
    "add_key",
    "amend",
    "apply_snapshot",
    "bench",
    "chain",
    "change_bitmap",
    "change_key",
    "check",
    "commit",
    "compare",
    "convert",
    "converting",
    "create",
    "create_snapshot",
    "delete_snapshot",
    "extents",
    "info",
    "limiter",
    "machine_for",
    "make_seed",
    "measure",
    "merge_bitmap",
    "overlay",
    "rebase",
    "remove_key",
    "resize",
]
