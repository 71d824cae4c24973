"""Disk images through qemu-img: `create` and `overlay`."""

from qmpkit.images.new import create, overlay

__all__ = ["create", "overlay"]
