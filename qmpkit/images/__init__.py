"""Disk images through qemu-img, the store of base images, and cloud-init's seeds.

`create`, `overlay`; `info`, `chain`; `check`, `resize`; `convert`, `converting`; `Store`;
`make_seed`; `machine_for`.
"""

from qmpkit.host.chain import MAX_CHAIN
from qmpkit.host.holders import Holder
from qmpkit.images.checking import CheckReport, check
from qmpkit.images.conversion import convert, converting
from qmpkit.images.details import Bitmap, ImageInfo, Snapshot, chain, info
from qmpkit.images.machine import machine_for
from qmpkit.images.new import create, overlay
from qmpkit.images.progress import Progress
from qmpkit.images.resizing import resize
from qmpkit.images.seed import CloudInit, make_seed
from qmpkit.images.store.gc import GcReport, Kept
from qmpkit.images.store.index import Image
from qmpkit.images.store.progress import Pulling, PullStep
from qmpkit.images.store.store import Store, Verified
from qmpkit.images.tool import INFO_LIMITS
from qmpkit.process.limits import Limits

__all__ = [
    "INFO_LIMITS",
    "MAX_CHAIN",
    "Bitmap",
    "CheckReport",
    "CloudInit",
    "GcReport",
    "Holder",
    "Image",
    "ImageInfo",
    "Kept",
    "Limits",
    "Progress",
    "PullStep",
    "Pulling",
    "Snapshot",
    "Store",
    "Verified",
    "chain",
    "check",
    "convert",
    "converting",
    "create",
    "info",
    "machine_for",
    "make_seed",
    "overlay",
    "resize",
]
