"""Which files a machine's UEFI is on this host, and what is wrong with them.  Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from qmpkit.errors import Fault
from qmpkit.host.check_files import file_in_use, unreadable
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.firmware import FirmwareFiles, choose_firmware, installed_firmware, no_firmware
from qmpkit.spec.facts import Flash
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.sizes import format_size

__all__ = ["look_at_flash"]


def look_at_flash(
    uefi: Uefi, arch: str, machine: str | None, *, check: bool = True, root: Path = Path("/")
) -> tuple[Flash | None, tuple[Problem, ...]]:
    """The files that *uefi* is on a *machine* (a versioned type; None: any of that *arch*).

    With `check=False` its own store is not looked at.  Some 0.5 ms.
    """
    flash, problem = _chosen(uefi, arch, machine, installed_firmware(root))
    if flash is None:
        return None, (problem,) if problem else ()
    problems = [*unreadable(Path(flash.code), "firmware.code")]
    problems += unreadable(Path(flash.template), "firmware.template")
    if check and uefi.vars and not problems:
        problems += _store_problems(Path(uefi.vars), flash)
    return flash, tuple(problems)


def _chosen(
    uefi: Uefi, arch: str, machine: str | None, installed: Iterable[FirmwareFiles]
) -> tuple[Flash | None, Problem | None]:
    if uefi.code is None:
        found = choose_firmware(installed, arch, machine, secure_boot=uefi.secure_boot)
        if found is None:
            return None, lacking("firmware", no_firmware(arch, secure_boot=uefi.secure_boot))
    else:
        # Two may share their code, and differ in the keys in their stores.
        same = [known for known in installed if known.code == uefi.code]
        same.sort(key=lambda known: known.secure_boot != uefi.secure_boot)
        if not same and uefi.template is None:
            message = f"it is not known which empty store belongs to {uefi.code!r}"
            return None, Problem(Fault("firmware.template", message, "name it"))
        found = same[0] if same else FirmwareFiles(code=uefi.code, template=uefi.template or "")
    own = uefi.template not in (None, found.template)
    flash = Flash(
        code=found.code,
        code_format=found.code_format,
        template=uefi.template or found.template,
        store_format="raw" if own else found.template_format,
    )
    return flash, None


def _store_problems(store: Path, flash: Flash) -> Iterator[Problem]:
    at = "firmware.vars"
    if not os.path.lexists(store):
        yield from _unmakeable(store.parent, at)
        return
    problems = list(unreadable(store, at))
    yield from problems
    if problems:
        return
    found = store.stat()
    if not stat.S_ISREG(found.st_mode):
        yield Problem(Fault(at, f"{str(store)!r} is not a file"))
        return
    if not os.access(store, os.W_OK, effective_ids=True):
        yield Problem(Fault(at, f"{str(store)!r} may not be written"))
    size = Path(flash.template).stat().st_size
    if flash.store_format == "raw" and found.st_size != size:
        sizes = f"{format_size(found.st_size)}, not the {format_size(size)}"
        message = f"{str(store)!r} is no store for {flash.code!r}: it has {sizes} of its template"
        yield Problem(Fault(at, message, "name the firmware it was made for in firmware.code"))
    yield from file_in_use(store, at, "give each machine a store of its own", for_writing=True)


def _unmakeable(folder: Path, at: str) -> Iterator[Problem]:
    if not folder.is_dir():
        message = f"the directory {str(folder)!r} does not exist"
        yield Problem(Fault(at, message, f"mkdir -p {folder}"))
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        yield Problem(Fault(at, f"no file can be made in {str(folder)!r}: no permission"))
