"""Small guests for tests, built from Debian's packages by our own code and cached.

    from qmpkit.testing import guests
    guests.build_tiny()      # Linux with a shell and the guest agent, ready in 2 s under TCG
    guests.build_kvm_tiny()  # a hundred bytes of machine code, ready at once, also under KVM
    guests.build_debian()    # a whole Debian on its own disk, ready in a minute under TCG
    async with guests.booted() as vm: ...  # a tiny guest of your own in 0.1 s

The profiles `tiny`, `tiny-microvm` and `kvm-tiny` start them; the same builds
run from a shell as `python -m qmpkit.testing.guests tiny kvm-tiny`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qmpkit.errors import HostLacks
from qmpkit.testing.guests import boot_sector, store
from qmpkit.testing.guests.boot_sector import COUNTER_ADDRESS
from qmpkit.testing.guests.debian import build_debian

if TYPE_CHECKING:
    from qmpkit.testing.guests.copies import booted as booted
    from qmpkit.testing.guests.tiny import PROMPT as PROMPT
    from qmpkit.testing.guests.tiny import build_tiny as build_tiny

__all__ = [
    "COUNTER_ADDRESS",
    "KVM_TINY_READY",
    "PROMPT",
    "TINY_READY",
    "booted",
    "build_debian",
    "build_kvm_tiny",
    "build_tiny",
]

TINY_READY = "qmpkit tiny guest ready"
KVM_TINY_READY = boot_sector.BANNER


# Building needs neither trio nor QEMU, and Debian not even the extra: only who asks pays.
_LATER = {"booted": "copies", "build_tiny": "tiny", "PROMPT": "tiny", "fetch_other_qemu": "qemus"}
_EXTRA = ("elftools", "lz4")


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_LATER[name]}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        what = f"the test guests need {missing.name}, which is not installed"
        raise HostLacks(what, "pip install 'qmpkit[testing]'") from missing
    return getattr(module, name)


def build_kvm_tiny(*, progress: Callable[[str], None] = lambda line: None) -> Path:
    """The directory of *kvm-tiny*: `firmware.bin` and `disk.img`; written when missing.

    Takes a few milliseconds, needs nothing from the network, safe to call from
    several processes at once.
    """
    link = store.guests_dir() / "kvm-tiny"
    files = {"firmware.bin": boot_sector.firmware_image(), "disk.img": boot_sector.boot_disk()}
    facts = {"content": store.digest({name: data.hex() for name, data in files.items()})}
    if store.current(link) == facts:
        return link.resolve()

    def build(scratch: Path) -> None:
        progress("writing the boot sector")
        for name, data in files.items():
            (scratch / name).write_bytes(data)

    with store.locked(link.with_name(".kvm-tiny.lock")):
        return store.publish(link, facts, build)
