"""Boot a guest once, save it, and start any number of copies in a tenth of a second.

The recipe, the same for QEMU 7.2 and 10.0:

1. Boot with `template_spec`: the RAM is a file, mapped shared, so it is on disk
   already when the guest stands still.
2. `save_template`: stop, then "migrate" with the capability x-ignore-shared, which
   leaves out shared RAM: some 400 KB of device state in 5 ms.  The machine must end
   then, for it goes on owning the file.
3. Start each copy with `clone_spec` and `-incoming defer`: the same machine, its RAM
   the same file mapped private, so that what it writes is its own.  `load_template`
   feeds it the device state in 5 ms, then it is resumed.

Copies are identical twins: MAC and SMBIOS UUID, boot id, host name and the state of
/dev/urandom are those of the template, and the clock stands where it was saved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import trio

from qmpkit.errors import QmpkitError
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import load_state, save_state
from qmpkit.operations.power import pause
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.machine import MachineSpec

__all__ = [
    "Template",
    "TemplateFailed",
    "clone_spec",
    "is_spoilt",
    "load_template",
    "read_template",
    "save_template",
    "template_spec",
]

RAM = "ram"
STATE = "state"
SPEC = "spec.json"


class TemplateFailed(QmpkitError):
    """QEMU could not save or load a machine's state; `why` is what it said."""

    def __init__(self, machine: str, asked: str, why: str) -> None:
        self.machine = machine
        self.asked = asked
        self.why = why
        super().__init__(machine, asked, why)

    def __str__(self) -> str:
        return f"machine {self.machine!r}: cannot {self.asked}: {self.why}"


@attrs.frozen
class Template:
    """A saved machine: the directory of its RAM and state, and its spec as it ran."""

    directory: Path
    spec: MachineSpec


def template_spec(spec: MachineSpec, directory: Path) -> MachineSpec:
    """*spec* with its RAM in a file in *directory*, to be booted and saved."""
    memory = attrs.evolve(spec.memory, mem_path=directory / RAM, share=True)
    return attrs.evolve(spec, memory=memory)


def clone_spec(template: Template, *, name: str | None = None) -> MachineSpec:
    """The machine that *template* can be loaded into; *name* is only the host's name for it.

    Its RAM is private: a copy that shared it would write into the template.  Disks
    are the template's own: give the copy overlays of them.
    """
    spec = template.spec
    memory = attrs.evolve(spec.memory, mem_path=template.directory / RAM, share=False)
    return attrs.evolve(spec, name=name or spec.name, memory=memory)


async def save_template(machine: Machine, directory: Path) -> Template:
    """Save *machine*, booted from `template_spec(…, directory)`, and leave it paused.

    End the machine right after: it still maps the template's RAM, and resumed it
    would go on changing it.  QMP: stop, migrate-set-capabilities, getfd, migrate.
    Raises TemplateFailed when QEMU refuses or the machine's RAM is elsewhere.
    Cancelled or failed, the directory holds no template.
    """
    memory = machine.spec.memory
    if not memory.share or memory.mem_path != os.fspath(directory / RAM):
        why = f"its RAM is not shared in {os.fspath(directory / RAM)!r}: boot `template_spec`"
        raise TemplateFailed(machine.name, "be saved as a template", why)
    await pause(machine)
    partial = directory / f"{STATE}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if why := await save_state(machine, partial, flags=flags, ignore_shared=True):
        raise TemplateFailed(machine.name, "save its state", why)
    document = json.dumps(spec_to_dict(machine.spec), indent=1)
    # The spec's presence says that the template is whole: it is written last.
    await trio.to_thread.run_sync(partial.replace, directory / STATE)
    await trio.Path(directory / SPEC).write_text(document)
    return Template(directory, machine.spec)


def read_template(directory: Path) -> Template | None:
    """The template in *directory*; None when there is none, or not a whole one."""
    try:
        document = json.loads((directory / SPEC).read_text())
    except FileNotFoundError:
        return None
    return Template(directory, spec_from_dict(document, source=str(directory / SPEC)))


def is_spoilt(template: Template) -> bool:
    """Whether somebody has written into its RAM since it was saved.  Blocking."""
    saved = (template.directory / SPEC).stat().st_mtime_ns
    return (template.directory / RAM).stat().st_mtime_ns > saved


async def load_template(machine: Machine, template: Template) -> None:
    """Load *template* into *machine*, which was started from `clone_spec` as incoming.

    The machine is paused after; `resume` lets the copy run.  QMP:
    migrate-set-capabilities, getfd, migrate-incoming.  A QEMU that does not like the
    state ends with the reason on its stderr: MonitorLost, MachineDied.  Cancelled,
    the machine is of no more use.
    """
    if why := await load_state(machine, template.directory / STATE, ignore_shared=True):
        raise TemplateFailed(machine.name, "load its state", why)
