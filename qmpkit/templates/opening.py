"""Opening a template: cheaply looked at, so that what is cloned is what was saved."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.resolve import resolve
from qmpkit.images.drafts import StrPath
from qmpkit.images.new import overlay
from qmpkit.images.tool import Asked
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.errors import TemplateBroken
from qmpkit.templates.files import flaws_at_a_glance, flaws_in_full
from qmpkit.templates.host import refuse_foreign
from qmpkit.templates.manifest import MANIFEST, Manifest, located, manifest_from_json
from qmpkit.templates.saved import Saved
from qmpkit.templates.specs import private_spec
from qmpkit.templates.template import Template

__all__ = ["open_template", "read_manifest"]

log = logging.getLogger("qmpkit")


async def open_template(path: StrPath, *, verify: bool = False) -> Template:
    """The template at *path*, which is to be cloned.

    Of each file its size, its time and a megabyte of samples are compared with what was
    saved, some milliseconds; a file with another time is read in whole, and with *verify*
    every file is.  Raises SpecInvalid when there is none, TemplateBroken with all that is
    not as it was saved, TemplateUnfit when this host cannot clone it, and what `running`
    raises when the host lacks something.
    """
    folder = Asked.of("open the template", path).path
    manifest = await trio.to_thread.run_sync(read_manifest, folder)
    await _compare(folder, manifest, whole=verify)
    spec = located(manifest.spec, folder)
    with await trio.to_thread.run_sync(tempfile.TemporaryDirectory) as scratch:
        files = await _empty_overlays(spec, Path(scratch))
        # Once for all clones: what is asked of a spec and its host is the same for each.
        private = await resolve(private_spec(spec, files))
        overlays = {id: await trio.to_thread.run_sync(it.read_bytes) for id, it in files.items()}
    for warning in private.warnings:
        log.warning("template %r: %s", str(folder), warning)
    await refuse_foreign(folder, manifest.build, private)
    return Template(Saved(folder, manifest, spec, overlays, private))


def read_manifest(folder: Path) -> Manifest:
    """What is said of the template in *folder*, unchecked; blocking.  SpecInvalid without one."""
    source = str(folder / MANIFEST)
    try:
        text = _text(folder / MANIFEST)
    except UnicodeDecodeError:
        raise SpecInvalid([Fault("", "this is not JSON")], source) from None
    except OSError as error:
        why = f"there is no template: {error.strerror}"
        raise SpecInvalid([Fault("", why, "qmpkit template make")], str(folder)) from error
    return manifest_from_json(text, source)


def _text(path: Path) -> str:
    # Non-blocking: opening a FIFO would wait for a writer for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device may have no end either
            fault = Fault("", "this is no regular file", "make the template anew")
            raise SpecInvalid([fault], str(path))
        return file.read().decode()


async def _compare(folder: Path, manifest: Manifest, *, whole: bool) -> None:
    flaws, doubtful = await trio.to_thread.run_sync(flaws_at_a_glance, folder, manifest.files)
    flaws += await flaws_in_full(folder, manifest.files if whole else doubtful)
    if flaws:
        raise TemplateBroken(str(folder), list(dict.fromkeys(flaws)))


async def _empty_overlays(spec: MachineSpec, scratch: Path) -> Mapping[str, Path]:
    """An empty overlay of each disk that clones write to: qemu-img runs once, not for each."""
    return {
        disk.id: await overlay(scratch / disk.id, disk.file, disk.format)
        for disk in spec.disks
        if not disk.is_readonly
    }
