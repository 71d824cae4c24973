"""`qmpkit argv`: the command that `qmpkit run` would start."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from qmpkit.cli.chosen import means_image
from qmpkit.cli.exits import Refusal
from qmpkit.cli.listing import chosen_spec
from qmpkit.cli.safe import shell_word
from qmpkit.cli.talk import print_json, talk
from qmpkit.host.resolve import resolve
from qmpkit.spec.argv import pretty, render
from qmpkit.spec.chardev import Endpoint, PathEndpoint
from qmpkit.spec.machine import MachineSpec, channels, links

__all__ = ["print_argv"]


async def print_argv(
    profile: str, overrides: Sequence[str], *, paused: bool, sockets: Path, as_json: bool
) -> None:
    """Print the command that starts the profile on this host; starts nothing but QEMU's probe."""
    if await trio.to_thread.run_sync(means_image, profile):
        raise Refusal(
            f"{profile!r} is a disk image, and this command shows profiles. "
            "Cure: `qmpkit run` makes a machine around an image"
        )
    resolution = await resolve(chosen_spec(profile, overrides), check=False)
    for warning in resolution.warnings:
        talk.warn(warning)
    spec = resolution.spec
    if cables := links(spec):
        raise Refusal(
            f"{', '.join(cables)}: this NIC's cable is a socket that only a running program "
            "can hand over. Cure: give the NIC an address"
        )
    endpoints: dict[str, Endpoint] = {
        channel: PathEndpoint(str(sockets / f"{spec.name}-{channel}.sock"))
        for channel in channels(spec)
    }
    argv = render(spec, resolution.facts, endpoints, paused=paused, checked=True)
    _note_missing_files(spec)
    if as_json:
        print_json(argv, compact=True)
    else:
        print(_pasteable(argv))
    if sys.stdout.isatty() and not as_json:
        monitor = sockets / f"{spec.name}-qmp.sock"
        talk.note(f"Once it runs: qmpkit qmp {shell_word(monitor)} query-status")


def _pasteable(argv: list[str]) -> str:
    text = pretty(argv)
    for word in argv:
        if not word.isprintable():  # an image's name may command the terminal
            text = text.replace(shlex.quote(word), shell_word(word))
    return text


def _note_missing_files(spec: MachineSpec) -> None:
    for disk in spec.disks:
        if disk.make is not None and not Path(disk.file).exists():
            talk.note(f"{disk.file} does not exist yet: `qmpkit run` makes it, this command not")
