"""`qmpkit template …`: what each of its commands does, all of it without a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.cli.chosen import ImageOptions, chosen_machine
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.progress import shown
from qmpkit.cli.safe import one_line
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.cli.template_names import known_template, template_names, template_path
from qmpkit.errors import QmpkitError
from qmpkit.process.roots import templates_root
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.sizes import format_size
from qmpkit.templates.files import flaws_by_size, flaws_in_full
from qmpkit.templates.make import make_template
from qmpkit.templates.manifest import Manifest
from qmpkit.templates.opening import read_manifest
from qmpkit.templates.saved import removed
from qmpkit.vm import VM

__all__ = ["Making", "make", "remove", "show_template", "show_templates", "verify"]

_FATE = "the image stays as it is, and its changes go into the template"

_BOOT_GRACE = 300.0


@attrs.frozen(kw_only=True)
class Making:
    """The command line of `template make`, read."""

    what: str
    template: str
    overrides: tuple[str, ...]
    wait: str | None
    run: tuple[str, ...]
    services: tuple[str, ...]
    drop_caches: bool
    ram: Path | None
    twins: bool
    user: str | None


async def make(making: Making) -> None:
    """Boot, prepare, save; say where it is."""
    path = template_path(making.template)
    async with interruptible() as work:
        await trio.to_thread.run_sync(_make_root, path)
        options = ImageOptions(user=making.user)
        # Its scratch stays: an image's changes are in there, and the template is made of them.
        async with chosen_machine(making.what, making.overrides, options, fate=_FATE) as chosen:
            _refuse_endless_wait(chosen.spec, making)

            async def prepare(vm: VM) -> None:
                await _prepared(vm, making)

            template = await make_template(
                chosen.spec,
                path,
                prepare,
                ram=making.ram,
                services=making.services,
                drop_caches=making.drop_caches,
                twins=making.twins,
            )
        work.done = True
    size = human_size(sum(file.length for file in template.manifest.files))
    talk.say(f"{making.template}: saved, {size} in {template.path}")


def _make_root(path: Path) -> None:
    if path.parent == templates_root():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _refuse_endless_wait(spec: MachineSpec, making: Making) -> None:
    if making.wait is None and not spec.agent:
        why = "nothing tells when its guest has booted"
        raise Refusal(f"{making.what}: {why}. Cure: --wait 'login:', or --set agent=true")
    if making.run and not spec.agent:
        raise Refusal(f"{making.what}: --run needs a guest agent. Cure: --set agent=true")


async def _prepared(vm: VM, making: Making) -> None:
    if making.wait is not None:
        talk.note(f"{vm.name}: booting, until its console shows {one_line(making.wait)!r} …")
        await vm.console.expect(making.wait)
    if vm.spec.agent and (making.wait is None or making.run or not making.twins):
        talk.note(f"{vm.name}: waiting for its guest agent …")
        await vm.agent.wait_ready()
        await _settled(vm)
    for line in making.run:
        talk.note(f"{vm.name}: {one_line(line)}")
        await vm.agent.run(["sh", "-c", line], check=True)
    talk.note(f"{vm.name}: saving …")


async def _settled(vm: VM) -> None:
    """Where systemd boots, the agent answers early, and each clone would have to boot the rest."""
    known = "command -v systemctl >/dev/null || exit 0"
    with trio.move_on_after(_BOOT_GRACE) as bound:
        done = await vm.agent.run(["sh", "-c", f"{known}; systemctl is-system-running --wait"])
        if done.text.strip() == "degraded":
            talk.warn(f"{vm.name}: some of its services have failed, see `systemctl --failed`")
    if bound.cancelled_caught:
        talk.warn(f"{vm.name}: its boot has not ended in {_BOOT_GRACE:g} s, and is not waited for")


async def show_templates(*, as_json: bool) -> None:
    """Print those that can be called by name."""
    found = await trio.to_thread.run_sync(_all)
    if as_json:
        told = ({**_to_dict(path, saved), "flaws": flaws} for path, saved, flaws in found)
        print_json([*told])
        return
    rows = [
        (
            path.name,
            _time(saved),
            saved.spec.machine,
            format_size(saved.spec.memory.size),
            human_size(sum(file.length for file in saved.files)),
            "; ".join([*(["twins only"] if saved.hooks is None else []), *flaws]),
        )
        for path, saved, flaws in found
    ]
    print_table(("NAME", "SAVED", "MACHINE", "MEMORY", "SIZE", "REMARK"), rows, prose=True)


def _all() -> list[tuple[Path, Manifest, list[str]]]:
    """Each with what is wrong with it, as far as that is seen at once: a RAM that is gone, say."""
    found = []
    for name in template_names():
        path = templates_root() / name
        try:
            saved = read_manifest(path)
            found.append((path, saved, flaws_by_size(path, saved.files)))
        except QmpkitError as error:
            talk.warn(str(error))
    return found


async def show_template(word: str, *, as_json: bool) -> None:
    """Print what is known of one."""
    path = await trio.to_thread.run_sync(known_template, word)
    saved = await trio.to_thread.run_sync(read_manifest, path)
    if as_json:
        print_json({**_to_dict(path, saved), "spec": spec_to_dict(saved.spec)})
        return
    build = saved.build
    version = ".".join(map(str, build.version))
    lines = {
        "path": path,
        "saved": _time(saved),
        "machine": f"{saved.spec.name}: {saved.spec.machine}, {saved.spec.cpu.present} CPU",
        "memory": f"{format_size(saved.spec.memory.size)} in {path / saved.ram}",
        "qemu": f"{version} ({build.package}), {build.binary}, {build.accel}",
        "clones": "twins only" if saved.hooks is None else "somebody each",
        "services": ", ".join(saved.hooks.services) if saved.hooks else "",
    }
    for key, value in lines.items():
        if value:
            print_line(f"{key + ':':<10}{value}")
    rows = [(file.name, human_size(file.length), file.checksum) for file in saved.files]
    print_table(("FILE", "SIZE", "CHECKSUM"), rows, prose=False)


def _to_dict(path: Path, saved: Manifest) -> dict[str, Any]:
    return {
        "name": path.name,
        "path": str(path),
        "created": saved.created,
        "machine": saved.spec.machine,
        "memory": int(saved.spec.memory.size),
        "twins_only": saved.hooks is None,
        "services": [] if saved.hooks is None else [*saved.hooks.services],
        "build": attrs.asdict(saved.build),
        "files": [attrs.asdict(file) for file in saved.files],
    }


def _time(saved: Manifest) -> str:
    return datetime.fromtimestamp(saved.created).astimezone().isoformat(" ", "seconds")


async def verify(word: str, *, as_json: bool) -> int:
    """Compare all checksums, and say what is not as it was."""
    async with interruptible():
        path = await trio.to_thread.run_sync(known_template, word)
        saved = await trio.to_thread.run_sync(read_manifest, path)
        with shown(f"{word}: reading") as told:
            flaws = await flaws_in_full(path, saved.files, told)
    if as_json:
        print_json({"name": path.name, "path": str(path), "flaws": flaws})
    elif not flaws:
        talk.say(f"{word}: every checksum is right")
    for flaw in () if as_json else flaws:
        print_line(flaw)
    return Exit.FAILED if flaws else Exit.OK


async def remove(words: Sequence[str]) -> None:
    """Remove each of them, and say so."""
    if not words:
        raise Refusal("which templates? Cure: name them, as `qmpkit template list` does")
    async with interruptible():
        paths = [await trio.to_thread.run_sync(known_template, word) for word in words]
        for word, path in zip(words, paths, strict=True):
            ram = await trio.to_thread.run_sync(_ram_of, path)
            await trio.to_thread.run_sync(removed, path, ram)
            talk.say(f"{word}: removed")


def _ram_of(path: Path) -> str:
    """Where its RAM is; of one of ours that is broken, in its folder, as far as anybody knows."""
    try:
        return read_manifest(path).ram
    except QmpkitError as error:
        if path.parent != templates_root() or not path.is_dir():
            raise
        talk.warn(f"{error}. It is removed all the same; RAM in another folder is not")
        return ""
