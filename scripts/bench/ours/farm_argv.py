"""Prints the command by which a kept machine is started, its listening sockets as `{0}` ….

Its argument is the accelerator.
"""

from __future__ import annotations

import json
import sys

import trio
from farm_spec import spec

from qmpkit.host.resolve import resolve
from qmpkit.machine.keep import ACTIONS
from qmpkit.spec.argv import TOOLS, render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.machine import channels

FAR = 9000  # numbers that occur nowhere else in the command


def main() -> None:
    resolution = trio.run(resolve, spec(0, "kvm" if sys.argv[1] == "kvm" else "tcg"))
    names = (*channels(resolution.spec), TOOLS)
    endpoints = {name: FdEndpoint(FAR + at, listen=True) for at, name in enumerate(names)}
    argv = render(resolution.spec, resolution.facts, endpoints, actions=ACTIONS)
    for at in range(len(names)):
        argv = [word.replace(f"fd={FAR + at}", f"fd={{{at}}}") for word in argv]
    print(json.dumps({"argv": argv, "sockets": len(names)}))


main()
