"""A folder that `vm.save` made, at the shell: run, and looked at; no daemon is needed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from qmpkit.cli.chosen import Chosen, ImageOptions
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.scratch import scratch
from qmpkit.cli.sizes import human_size
from qmpkit.cli.talk import print_json, talk
from qmpkit.errors import Fault
from qmpkit.operations.saved.restoring import faults_of, restorable, saved_machine, verify_saved
from qmpkit.spec.saved import MANIFEST, SavedMachine

__all__ = ["means_saved", "restored_machine", "show_saved"]

_FIT = ("--write", "--keep")


def means_saved(word: str) -> bool:
    """Whether *word* is the folder of a saved machine.  Blocking."""
    return bool(word) and "\0" not in word and (Path(word) / MANIFEST).is_file()


@asynccontextmanager
async def restored_machine(
    word: str, overrides: tuple[str, ...], options: ImageOptions
) -> AsyncIterator[Chosen]:
    """The machine that was saved there; what it writes goes where the options say."""
    unfit = [it for it in options.given() if it not in _FIT] + (["--set"] if overrides else [])
    if unfit:
        raise Refusal(f"{', '.join(unfit)} cannot change {word!r}: a saved machine is as it was")
    if options.write and options.keep is not None:
        raise Refusal("--write goes on with its own disks, --keep beside them. Cure: leave one out")
    async with scratch() as folder:
        thrown = (await folder.path("layers")).parent
        layers = None if options.write else options.keep or thrown
        async with restorable(Path(word), layers=layers, verify=False) as found:

            async def has_started() -> None:
                await found.used()
                await folder.remove()

            _tell(found.saved, layers, options)
            yield Chosen(found.spec, has_started=has_started)


def _tell(saved: SavedMachine, layers: Path | None, options: ImageOptions) -> None:
    talk.note(f"{saved.name}: it goes on where it was at {_when(saved)}")
    if layers is None:
        talk.note(f"{saved.name}: on its own disks, so this once")
    elif options.keep is not None:
        talk.note(f"{saved.name}: changes are kept in {layers}; it stays as it was saved")
    else:
        talk.note(
            f"{saved.name}: changes are thrown away at the end (--keep DIR keeps them, --write "
            "goes on with its own disks, once)"
        )


def _when(saved: SavedMachine) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(saved.time))


async def show_saved(folder: Path, *, verify: bool, as_json: bool) -> int:
    """`saved`: what is in it, and whether it can be restored."""
    async with interruptible():
        saved = await saved_machine(folder)
        faults = await (verify_saved(folder) if verify else faults_of(folder))
    if as_json:
        print_json(_view(saved, faults))
    else:
        how = f"{human_size(saved.size)}, RAM {saved.ram}, by QEMU {saved.qemu} with {saved.accel}"
        print(f"{saved.name}: saved at {_when(saved)}, {how}")
        for fault in faults:
            talk.error(str(fault))
    return Exit.FAILED if faults else Exit.OK


def _view(saved: SavedMachine, faults: tuple[Fault, ...]) -> dict[str, Any]:
    told = attrs.asdict(saved, filter=lambda field, _: field.name != "spec")
    return {
        "name": saved.name,
        "machine": saved.spec.machine,
        **told,
        "faults": [attrs.asdict(fault) for fault in faults],
    }
