"""Disk images through qemu-img, and cloud-init's seeds.

`create`, `overlay`; `info`, `chain`; `check`, `resize`; `convert`, `converting`; `make_seed`;
`machine_for`.
"""

from qmpkit.host.chain import MAX_CHAIN
from qmpkit.host.holders import Holder
from qmpkit.images.checking import CheckReport, check
from qmpkit.images.conversion import convert, converting
from qmpkit.images.details import Bitmap, ImageInfo, Snapshot, chain, info
from qmpkit.images.machine import machine_for
from qmpkit.images.new import create, overlay
from qmpkit.images.options import Options
from qmpkit.images.progress import Progress
from qmpkit.images.resizing import resize
from qmpkit.images.seed import CloudInit, make_seed
from qmpkit.images.tool import INFO_LIMITS
from qmpkit.images.turns import limiter
from qmpkit.process.limits import Limits

__all__ = [
    "INFO_LIMITS",
    "MAX_CHAIN",
    "Bitmap",
    "CheckReport",
    "CloudInit",
    "Holder",
    "ImageInfo",
    "Limits",
    "Options",
    "Progress",
    "Snapshot",
    "chain",
    "check",
    "convert",
    "converting",
    "create",
    "info",
    "limiter",
    "machine_for",
    "make_seed",
    "overlay",
    "resize",
]
