"""Disk images through qemu-img (`create`, `overlay`), and cloud-init's seeds (`make_seed`)."""

from qmpkit.images.new import create, overlay
from qmpkit.images.seed import CloudInit, make_seed

__all__ = ["CloudInit", "create", "make_seed", "overlay"]
