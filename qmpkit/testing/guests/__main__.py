"""`python -m qmpkit.testing.guests [--refresh] NAME…`: make what live tests need, say where it is.

NAME is `tiny`, `tiny-aarch64`, `tiny-riscv64`, `kvm-tiny`, `debian` (test guests) or `qemu`
(a second QEMU beside the distribution's).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.testing import guests
from qmpkit.testing.guests import build_debian, build_kvm_tiny
from qmpkit.testing.guests.architectures import TINY


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qmpkit.testing.guests", description=__doc__)
    names = [*(tiny.name for tiny in TINY.values()), "kvm-tiny", "debian", "qemu"]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--refresh", action="store_true", help="ask Debian for newer packages")
    parser.add_argument("--quiet", action="store_true", help="only say what had to be done")
    options = parser.parse_args()
    builders: dict[str, Callable[..., Path]] = {
        **{t.name: partial(_later, "build_tiny", arch) for arch, t in TINY.items()},
        "kvm-tiny": _kvm_tiny,
        "debian": build_debian,
        "qemu": partial(_later, "fetch_other_qemu"),
    }
    for name in options.names:
        started = time.monotonic()
        try:
            path = builders[name](refresh=options.refresh, progress=partial(_say, name))
        except QmpkitError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 3 if isinstance(error, HostLacks) else 2
        took = time.monotonic() - started
        if not options.quiet or took > 1:
            _say(name, f"{path} ({took:.1f} s)")
    return 0


def _later(builder: str, *words: str, **options: Any) -> Path:
    """By a builder that needs the extra: who asks for another does without."""
    path: Path = getattr(guests, builder)(*words, **options)
    return path


def _kvm_tiny(*, refresh: bool, progress: Callable[[str], None]) -> Path:
    """Of which nothing comes from Debian."""
    return build_kvm_tiny(progress=progress)


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
