"""Prints the command that our side starts, its sockets as `{0}`, `{1}` …, for the peers."""

from __future__ import annotations

import json

import trio
from start_spec import SPEC

from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.machine import channels

FAR = 9000  # numbers that occur nowhere else in the command


def main() -> None:
    resolution = trio.run(resolve, SPEC)
    names = channels(resolution.spec)
    endpoints = {name: FdEndpoint(FAR + at) for at, name in enumerate(names)}
    argv = render(resolution.spec, resolution.facts, endpoints)
    for at in range(len(names)):
        argv = [word.replace(f"fd={FAR + at}", f"fd={{{at}}}") for word in argv]
    print(json.dumps({"argv": argv, "sockets": len(names)}))


main()
