"""A spec and this host, brought together: what will be started, and what stands in its way."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from qmpkit.errors import BinaryMissing, Fault, HostLacks, LaunchFailed, SpecInvalid
from qmpkit.host.accel import Decision, decide
from qmpkit.host.aio import best_aio, io_uring_works
from qmpkit.host.binary import capabilities_of, find_binary, known_capabilities
from qmpkit.host.capabilities import Capabilities, Stamp
from qmpkit.host.encrypted import bases_of
from qmpkit.host.findings import Problem, lacking, raise_problems
from qmpkit.host.flash import look_at_flash
from qmpkit.host.kvm import KvmFacts, host_arch, kvm_facts
from qmpkit.host.placing import decided
from qmpkit.host.preflight import host_warnings, preflight
from qmpkit.host.variables import NAMES, host_variables
from qmpkit.spec.block import Disk
from qmpkit.spec.boards import board_of
from qmpkit.spec.check import check_types, faults_of
from qmpkit.spec.convert import structure, unstructure
from qmpkit.spec.cpu import model_of
from qmpkit.spec.encryption import BaseImage
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.firmware import Firmware, Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import PATHS, map_fields, texts_of
from qmpkit.spec.variables import expand, variables_in

__all__ = ["Resolution", "resolve", "with_absolute_paths"]

# Until then pflash 0 was for machine mode, in OpenSBI's place.
_RISCV_FLASH = (8, 1)


@attrs.frozen
class Resolution:
    """What a spec means on this host.

    `spec`: variables expanded, paths absolute, machine type versioned, accelerator and
    CPU model decided.  `facts`: what `render` needs.  `warnings`: sentences for the user.
    `capabilities`: what the binary can do.  `kvm`: what KVM is here.
    """

    spec: MachineSpec
    facts: Facts
    warnings: tuple[str, ...]
    capabilities: Capabilities
    kvm: KvmFacts


async def resolve(spec: MachineSpec, *, check: bool = True) -> Resolution:
    """Find out how *spec* is started here, and everything that stands in its way, at once.

    With `check=False` the files, ports and devices it names are not looked at (to
    show a command line).  A disk whose `make` target exists is used as it is.
    Costs 1 ms once the binary's answers are cached, 60 ms before (see `capabilities_of`).

    Raises `SpecInvalid` with every fault found; when there is one only, and it is the
    host's, `HostLacks`, `KvmUnavailable`, `BinaryMissing` or `ImageInUse` instead.
    `LaunchFailed` when the binary is no QEMU.  Cancelling leaves nothing behind.
    """
    check_types(spec)
    survey = await trio.to_thread.run_sync(_survey, spec, check)
    known = survey.capabilities
    if known is None and survey.stamp is not None:
        known = await _ask(survey.stamp, spec.name)
    flash, problems = await _flash(survey, known, check)
    if problems:
        survey = attrs.evolve(survey, problems=survey.problems + problems)
    return _conclude(survey, known, flash)


async def _flash(
    survey: _Survey, known: Capabilities | None, check: bool
) -> tuple[Flash | None, tuple[Problem, ...]]:
    spec, uefi = survey.spec, survey.spec.firmware
    if not isinstance(uefi, Uefi) or not survey.concrete or _senseless(survey):
        return None, ()
    machine = known.machine(spec.machine) if known is not None else None
    name = machine.name if machine is not None else None
    return await trio.to_thread.run_sync(lambda: look_at_flash(uefi, spec.arch, name, check=check))


def _senseless(survey: _Survey) -> bool:
    """No host has UEFI for a board without flash, or the files of a spec that is wrong there.

    To say so of this host too would send people to install a package in vain.
    """
    if board_of(survey.spec.machine, survey.spec.arch) is None:
        return True
    return any(problem.fault.path.split(".")[0] == "firmware" for problem in survey.problems)


async def _ask(stamp: Stamp, machine: str) -> Capabilities:
    try:
        return await capabilities_of(stamp)
    except LaunchFailed as failed:
        # It was a start of ours, but the user knows of one machine only.
        raise LaunchFailed(
            machine, failed.argv, failed.status, failed.stderr_tail, failed.cure
        ) from failed


@attrs.frozen
class _Survey:
    """What one trip to a worker thread brought back; `concrete`: its variables are filled in."""

    spec: MachineSpec
    concrete: bool
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    kvm: KvmFacts
    stamp: Stamp | None
    capabilities: Capabilities | None
    bases: dict[str, tuple[BaseImage, ...]]


def _survey(declared: MachineSpec, check: bool) -> _Survey:
    problems = [Problem(fault) for fault in faults_of(declared)]
    spec = _made_concrete(declared, problems)
    stamp = _find(spec or declared, problems)
    if check and spec is not None:
        problems += preflight(spec)
        if not problems:
            spec = _placed(spec, problems)
    return _Survey(
        spec=spec or declared,
        concrete=spec is not None,
        problems=tuple(problems),
        warnings=tuple(host_warnings(spec or declared)) if check else (),
        kvm=kvm_facts(),
        stamp=stamp,
        capabilities=known_capabilities(stamp) if stamp is not None else None,
        bases={disk.id: bases_of(disk) for disk in (spec.disks if spec else ()) if disk.luks},
    )


def _placed(spec: MachineSpec, problems: list[Problem]) -> MachineSpec:
    try:
        return decided(spec)
    except HostLacks as error:
        problems.append(lacking("cpu.pin", error))
        return spec


def _made_concrete(spec: MachineSpec, problems: list[Problem]) -> MachineSpec | None:
    """Variables filled in and paths absolute; None when the variables make no sense."""
    try:
        if used := variables_in(spec):
            # All names are offered, so that a wrong one is answered with the right ones.
            values = {**dict.fromkeys(NAMES), **host_variables(used)}
            spec = expand(spec, values)
    except SpecInvalid as invalid:
        problems += [Problem(fault) for fault in invalid.faults]
        return None
    return with_absolute_paths(spec)


def with_absolute_paths(spec: MachineSpec) -> MachineSpec:
    """QEMU's directory is not ours for ever, and a path with a colon must not look like a URL."""
    if all(not text or text.startswith("/") for text in texts_of(spec, PATHS)):
        return spec

    check_types(spec)

    def absolute(_: str, text: str) -> str:
        return str(Path.cwd() / text) if text else text

    return structure(map_fields(unstructure(spec), PATHS, absolute))


def _find(spec: MachineSpec, problems: list[Problem]) -> Stamp | None:
    try:
        return Stamp.of(find_binary(spec.qemu, spec.arch))
    except BinaryMissing as missing:
        problems.append(lacking("qemu", missing))
    except OSError as error:  # removed in this moment
        gone = BinaryMissing(f"the QEMU binary cannot be read: {error.strerror}")
        problems.append(lacking("qemu", gone))
    return None


def _conclude(survey: _Survey, known: Capabilities | None, flash: Flash | None) -> Resolution:
    spec = survey.spec
    problems = list(survey.problems)
    decision = _decide(spec, survey.kvm, known, problems)
    if known is not None:
        told = {problem.fault.path for problem in problems}
        found = _misfits(spec, known, decision)
        problems += [problem for problem in found if problem.fault.path not in told]
    raise_problems(problems, f"machine {spec.name!r}")
    assert known is not None and decision is not None and survey.stamp is not None
    machine = known.machine(spec.machine)
    assert machine is not None, "an unknown machine type is one of the misfits"
    board = board_of(spec.machine, spec.arch)
    assert board is not None, "no such board is a fault of the spec"
    model = model_of(spec.cpu, decision.accel, board.tcg_cpu)
    resolved = attrs.evolve(
        spec,
        machine=machine.name,
        machine_options={**board.options, **spec.machine_options},
        accel=decision.accel,
        cpu=attrs.evolve(spec.cpu, model=model),
        disks=[_with_aio(disk, known) for disk in spec.disks],
        firmware=_named(spec.firmware, flash),
        qemu=survey.stamp.path if spec.qemu is not None else None,
    )
    facts = Facts(
        binary=survey.stamp.path,
        accel=decision.accel,
        cpu_flags=decision.cpu_flags,
        run_with_user=known.run_with_user,
        flash=flash,
        bases=survey.bases,
    )
    warnings = tuple(text for text in (decision.warning, *survey.warnings) if text)
    return Resolution(resolved, facts, warnings, known, survey.kvm)


def _with_aio(disk: Disk, known: Capabilities) -> Disk:
    if disk.aio != "auto":
        return disk
    return attrs.evolve(disk, aio=best_aio(disk.cache, known.aio, ring=io_uring_works()))


def _named(firmware: Firmware, flash: Flash | None) -> Firmware:
    """UEFI with the files it turned out to be, so that a saved machine finds them again."""
    if not isinstance(firmware, Uefi) or flash is None:
        return firmware
    return attrs.evolve(firmware, code=flash.code, template=flash.template)


def _decide(
    spec: MachineSpec, kvm: KvmFacts, known: Capabilities | None, problems: list[Problem]
) -> Decision | None:
    accelerators = ("kvm", "tcg") if known is None else known.accelerators
    try:
        return decide(
            spec.accel,
            kvm,
            guest_arch=spec.arch,
            host_arch=host_arch(),
            accelerators=accelerators,
        )
    except HostLacks as error:
        problems.append(lacking("accel", error))
        return None


def _misfits(
    spec: MachineSpec, known: Capabilities, decision: Decision | None
) -> Iterator[Problem]:
    """What the spec wants and this binary does not have."""
    if known.arch != spec.arch:
        message = f"this binary is for {known.arch}, the machine is {spec.arch}"
        yield Problem(Fault("qemu", message))
        return
    version = ".".join(str(part) for part in known.version)
    machine = known.machine(spec.machine)
    if machine is None:
        close = known.similar_machines(spec.machine)
        hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        message = f"QEMU {version} has no machine type {spec.machine!r}"
        yield Problem(Fault("machine", message, hint))
    elif (spec.cpu.maxcpus or spec.cpu.cpus) > machine.max_cpus:
        where = "cpu.cpus" if spec.cpu.maxcpus is None else "cpu.maxcpus"
        message = f"{machine.name} takes at most {machine.max_cpus} processors"
        yield Problem(Fault(where, message))
    if spec.arch == "riscv64" and isinstance(spec.firmware, Uefi) and known.version < _RISCV_FLASH:
        message = f"QEMU {version} has no flash for the UEFI of riscv64, it came with 8.1"
        yield Problem(Fault("firmware", message, "use a newer QEMU, or a kernel"))
    if fault := _cpu_model_fault(spec, known, decision):
        yield Problem(fault)
    for number, disk in enumerate(spec.disks):
        if disk.iothreads and not known.vq_mapping:
            message = f"QEMU {version} cannot divide a disk's queues, 9.0 and later can"
            yield Problem(Fault(f"disks[{number}].iothreads", message, "one iothread"))
        if disk.aio not in (*known.aio, "auto"):
            message = f"this QEMU was built without {disk.aio}"
            yield Problem(Fault(f"disks[{number}].aio", message, 'aio = "auto"'))


def _cpu_model_fault(
    spec: MachineSpec, known: Capabilities, decision: Decision | None
) -> Fault | None:
    model = spec.cpu.model
    if model == "host":
        if decision is not None and decision.accel != "kvm":
            return Fault("cpu.model", '"host" needs KVM', "leave it out: it is chosen by itself")
        return None
    if model is None or not known.cpu_models or model in known.cpu_models:
        return None
    close = difflib.get_close_matches(model, known.cpu_models, n=2)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return Fault("cpu.model", f"QEMU has no CPU model {model!r}", hint)
