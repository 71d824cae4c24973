"""Which files a machine's UEFI is on this host, and what is wrong with them.  Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from qmpkit.errors import Fault
from qmpkit.host.check_files import file_in_use, unreadable
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.firmware import FirmwareFiles, choose_firmware, installed_firmware, no_firmware
from qmpkit.host.headers import read_header
from qmpkit.host.platform_key import has_platform_key
from qmpkit.spec.facts import Flash
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.sizes import format_size

__all__ = ["look_at_flash"]


def look_at_flash(
    uefi: Uefi, arch: str, machine: str | None, *, check: bool = True
) -> tuple[Flash | None, tuple[Problem, ...]]:
    """The files that *uefi* is on a *machine* (a versioned type; None: any of that *arch*).

    With `check=False` its own store is not looked at.  Some 0.5 ms.
    """
    installed = installed_firmware()
    found = _found(uefi, arch, machine, installed)
    if isinstance(found, Problem):
        return None, (found,)
    own = uefi.template not in (None, found.template)
    flash = Flash(
        code=found.code,
        code_format=found.code_format,
        template=uefi.template or found.template,
        store_format="raw" if own else found.template_format,
    )
    problems = [*_file_problems(Path(flash.code), "firmware.code")]
    problems += _file_problems(Path(flash.template), "firmware.template")
    if uefi.secure_boot:
        problems += _lax(flash, installed)
    if check and uefi.vars and not problems:
        problems += _store_problems(Path(uefi.vars), flash, secure_boot=uefi.secure_boot)
    return flash, tuple(problems)


def _found(
    uefi: Uefi, arch: str, machine: str | None, installed: Iterable[FirmwareFiles]
) -> FirmwareFiles | Problem:
    if uefi.code is None:
        found = choose_firmware(installed, arch, machine, secure_boot=uefi.secure_boot)
        return found or lacking("firmware", no_firmware(arch, secure_boot=uefi.secure_boot))
    same = [known for known in installed if known.code == uefi.code]
    fitting = [known for known in same if known.is_for(arch, None)]
    if fitting:
        # Two may share their code, and differ in the keys in their stores.
        wanted = uefi.template, uefi.secure_boot
        return min(fitting, key=lambda it: (it.template != wanted[0], it.secure_boot != wanted[1]))
    if same:
        theirs = ", ".join(dict.fromkeys(their for it in same for their, _ in it.targets))
        message = f"{uefi.code!r} is for {theirs or 'no machine'}, the machine is {arch}"
        return Problem(Fault("firmware.code", message))
    if uefi.template is None:
        message = f"it is not known which empty store belongs to {uefi.code!r}"
        return Problem(Fault("firmware.template", message, "name it"))
    return FirmwareFiles(code=uefi.code, template=uefi.template)


def _file_problems(path: Path, at: str) -> Iterator[Problem]:
    problems = list(unreadable(path, at))
    yield from problems
    if not problems and not path.is_file():  # a pipe or a device could be read for ever
        yield Problem(Fault(at, f"{str(path)!r} is not a file"))


def _lax(flash: Flash, installed: Iterable[FirmwareFiles]) -> Iterator[Problem]:
    """Files that are known to run anything, where nobody would notice that they do."""
    for path, at, feature, lacks in (
        (flash.code, "firmware.code", "secure-boot", "has no Secure Boot"),
        (flash.template, "firmware.template", "enrolled-keys", "has no keys enrolled"),
    ):
        known = [files.features for files in installed if path in files.files]
        if known and not any(feature in features for features in known):
            hint = "leave out code and template: the host's own are chosen"
            yield Problem(Fault(at, f"{path!r} {lacks}", hint))


def _store_problems(store: Path, flash: Flash, *, secure_boot: bool) -> Iterator[Problem]:
    at = "firmware.vars"
    if not os.path.lexists(store):
        yield from _unmakeable(store.parent, at)
        return
    if store.is_symlink() and not store.exists():
        message = f"{str(store)!r} is a link to {str(store.readlink())!r}, which does not exist"
        yield Problem(Fault(at, message, "remove the link"))
        return
    problems = list(_file_problems(store, at)) or list(_shared(store, flash, at))
    yield from problems
    if problems:
        return
    if not os.access(store, os.W_OK, effective_ids=True):
        yield Problem(Fault(at, f"{str(store)!r} may not be written"))
    yield from _other_kind(store, flash, at)
    if secure_boot:
        yield from _keyless(store, flash, at)
    yield from file_in_use(store, at, "give each machine a store of its own", for_writing=True)


def _shared(store: Path, flash: Flash, at: str) -> Iterator[Problem]:
    """Under another name, or not named in the spec, its text alone does not tell."""
    for name, path in (("code", flash.code), ("template", flash.template)):
        if store.samefile(path):
            message = f"{str(store)!r} is the {name} too, which machines share"
            yield Problem(Fault(at, message, "name a file of its own"))


def _other_kind(store: Path, flash: Flash, at: str) -> Iterator[Problem]:
    hint = "name the firmware it was made for in firmware.code"
    told = f"{str(store)!r} is no store for {flash.code!r}: it"
    template = Path(flash.template)
    if flash.store_format != "raw":
        if (theirs := read_header(store).format or "raw") != flash.store_format:
            message = f"{told} is {theirs}, not {flash.store_format} as its template"
            yield Problem(Fault(at, message, hint))
    elif (size := store.stat().st_size) != (wanted := template.stat().st_size):
        sizes = f"{format_size(size)}, not the {format_size(wanted)}"
        yield Problem(Fault(at, f"{told} has {sizes} of its template", hint))


def _keyless(store: Path, flash: Flash, at: str) -> Iterator[Problem]:
    """A store of the time before Secure Boot was asked for: with it nothing is refused."""
    # Only where the template has a key that we see is its absence one.
    if flash.store_format != "raw" or not has_platform_key(Path(flash.template)):
        return
    if not has_platform_key(store):
        message = f"{str(store)!r} has no keys enrolled, so that Secure Boot would be off"
        yield Problem(Fault(at, message, "move it away: a new one is made, with keys"))


def _unmakeable(folder: Path, at: str) -> Iterator[Problem]:
    if not folder.is_dir():
        message = f"the directory {str(folder)!r} does not exist"
        yield Problem(Fault(at, message, f"mkdir -p {folder}"))
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        yield Problem(Fault(at, f"no file can be made in {str(folder)!r}: no permission"))
