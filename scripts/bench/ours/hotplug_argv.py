"""Prints the command that our side starts, its sockets by their channels, for the peer."""

from __future__ import annotations

import json

import trio
from hotplug_spec import SPEC

from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.machine import channels
from qmpkit.testing import guests

FAR = 9000  # numbers that occur nowhere else in the command


def main() -> None:
    guests.build_tiny()
    resolution = trio.run(resolve, SPEC)
    names = channels(resolution.spec)
    endpoints = {name: FdEndpoint(FAR + at) for at, name in enumerate(names)}
    argv = render(resolution.spec, resolution.facts, endpoints)
    for at, name in enumerate(names):
        argv = [word.replace(f"fd={FAR + at}", f"fd={{{name}}}") for word in argv]
    print(json.dumps({"argv": argv, "channels": list(names)}))


main()
