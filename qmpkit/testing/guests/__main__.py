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
from qmpkit.testing.guests.qemus import fetch_other_qemu


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qmpkit.testing.guests", description=__doc__)
    names = [*(tiny.name for tiny in TINY.values()), "kvm-tiny", "debian", "qemu"]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--refresh", action="store_true", help="ask Debian for newer packages")
    parser.add_argument("--quiet", action="store_true", help="only say what had to be done")
    options = parser.parse_args()
    builders: dict[str, Callable[..., Path]] = {
        **{t.name: partial(_tiny, arch, refresh=options.refresh) for arch, t in TINY.items()},
        "kvm-tiny": build_kvm_tiny,
        "debian": partial(build_debian, refresh=options.refresh),
        "qemu": partial(fetch_other_qemu, refresh=options.refresh),
    }
    for name in options.names:
        started = time.monotonic()
        try:
            path = builders[name](progress=partial(_say, name))
        except QmpkitError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 3 if isinstance(error, HostLacks) else 2
        took = time.monotonic() - started
        if not options.quiet or took > 1:
            _say(name, f"{path} ({took:.1f} s)")
    return 0


def _tiny(arch: str, **options: Any) -> Path:
    """Only who builds one needs the extra for it."""
    return guests.build_tiny(arch, **options)


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
