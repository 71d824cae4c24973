"""`python -m qmpkit.testing.guests [--refresh] NAME…`: make what live tests need, say where it is.

NAME is `tiny`, `kvm-tiny` (test guests) or `qemu` (a second QEMU beside the distribution's).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qmpkit.errors import QmpkitError
from qmpkit.testing.guests import build_kvm_tiny, build_tiny
from qmpkit.testing.guests.qemus import fetch_other_qemu


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qmpkit.testing.guests", description=__doc__)
    parser.add_argument("names", nargs="+", choices=["tiny", "kvm-tiny", "qemu"], metavar="NAME")
    parser.add_argument("--refresh", action="store_true", help="ask Debian for newer packages")
    options = parser.parse_args()
    builders: dict[str, Callable[..., Path]] = {
        "tiny": partial(build_tiny, refresh=options.refresh),
        "kvm-tiny": build_kvm_tiny,
        "qemu": partial(fetch_other_qemu, refresh=options.refresh),
    }
    for name in options.names:
        started = time.monotonic()
        try:
            path = builders[name](progress=lambda line, name=name: print(f"{name}: {line}"))
        except QmpkitError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        print(f"{name}: {path} ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
