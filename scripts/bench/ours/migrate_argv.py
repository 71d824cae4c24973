"""Prints the commands of both ends, their sockets as `@qmp@`, `@serial0@`, for the peer."""

from __future__ import annotations

import json
import sys
from typing import Any

import trio
from migrate_spec import spec_of

from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.machine import channels

FAR = 9000  # numbers that occur nowhere else in the command


def main(load: dict[str, Any]) -> None:
    resolution = trio.run(resolve, spec_of(load))
    names = channels(resolution.spec)
    endpoints = {name: FdEndpoint(FAR + at) for at, name in enumerate(names)}
    commands = {}
    for end, incoming in (("source", False), ("destination", True)):
        argv = render(resolution.spec, resolution.facts, endpoints, incoming=incoming)
        for at, name in enumerate(names):
            argv = [word.replace(f"fd={FAR + at}", f"fd=@{name}@") for word in argv]
        commands[end] = argv
    print(json.dumps({**commands, "channels": list(names)}))


main(json.loads(sys.argv[1]))
