"""The command line of a machine, and how it is shown to people."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec import devices as parts
from qmpkit.spec.block import threads_of
from qmpkit.spec.boards import Board, board_of, family_of
from qmpkit.spec.chardev import Endpoint, chardev_option, monitor_option, socket_option
from qmpkit.spec.check import validate
from qmpkit.spec.cpu import cpu_option, model_of, smp_option
from qmpkit.spec.cpu_places import cpu_device
from qmpkit.spec.facts import Facts
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.flash import flash_machine_options, flash_options
from qmpkit.spec.layout import layout_of
from qmpkit.spec.machine import MachineSpec, channels, links, served
from qmpkit.spec.memory import memory_option
from qmpkit.spec.names import RAM_ID
from qmpkit.spec.numa import numa_options
from qmpkit.spec.options import Json, keyvals, to_json
from qmpkit.spec.peripherals import Share
from qmpkit.spec.silence import silence_options

__all__ = ["TOOLS", "pretty", "render"]

TOOLS = "tools"
"""The endpoint of a second QMP monitor, the only one that strangers are told of."""


def render(
    spec: MachineSpec,
    facts: Facts,
    endpoints: Mapping[str, Endpoint],
    *,
    paused: bool = True,
    incoming: bool = False,
    silent: Iterable[str] = (),
    actions: Mapping[str, str] | None = None,
    store: int | None = None,
    checked: bool = False,
) -> list[str]:
    """The argv that starts `spec`, the launcher's words and the binary first.

    `endpoints` holds one endpoint for each of `channels(spec)`, `links(spec)`, `served(spec)`, and
    may hold `TOOLS`. `paused` starts with the processors stopped (`-S`) until `cont`,
    `incoming` waits for `migrate-incoming` to fill the machine (`-incoming defer`), as one
    with `resume_from` does. `silent`: NICs that hear nothing until they are told to (`hear`).
    `actions` is `-action`: what QEMU does on "shutdown", "panic", "reboot".
    `store` is the descriptor of the UEFI variables of a machine that keeps none.
    `checked` says that the spec is one that `resolve` has found without a fault.
    Raises `SpecInvalid` with every fault of the spec, `ValueError` for a wrong endpoint.
    """
    if not checked:
        validate(spec)
    if faults := tuple(_accelerator_faults(spec, facts)):
        raise SpecInvalid(faults, f"machine {spec.name!r}")
    _check_endpoints(spec, endpoints)
    argv = [*spec.launcher, spec.qemu or facts.binary]
    argv += _base(spec, facts)
    argv += _boot(spec, facts, store)
    if paused:
        argv.append("-S")
    if incoming or spec.resume_from is not None:
        argv += ["-incoming", "defer"]
    if actions:
        argv += ["-action", keyvals("", actions.items())]
    for channel, endpoint in endpoints.items():
        if channel not in links(spec):
            argv += ["-chardev", chardev_option(channel, endpoint)]
    for device in spec.devices:
        if isinstance(device, Share) and not device.served:
            argv += ["-chardev", socket_option(device.id, device.socket)]
    for monitor in ("qmp", TOOLS):
        if monitor in endpoints:
            argv += ["-mon", monitor_option(monitor)]
    argv += _hardware(spec, facts, endpoints)
    argv += silence_options(silent)
    return [*argv, *spec.extra_args]


def _accelerator_faults(spec: MachineSpec, facts: Facts) -> Iterator[Fault]:
    """What only KVM can do."""
    if facts.accel == "kvm":
        return
    for number, disk in enumerate(spec.disks):
        if threads_of(disk) and family_of(spec.machine) == "microvm":
            message = "microvm has iothreads only under KVM, and this is TCG"
            yield Fault(f"disks[{number}].iothread", message, "leave iothread out")
    if spec.cpu.model == "host":
        yield Fault("cpu.model", "'host' needs KVM, and this is TCG", "leave model out")


def _check_endpoints(spec: MachineSpec, endpoints: Mapping[str, Endpoint]) -> None:
    wanted = {*channels(spec), *links(spec), *(share.id for share in served(spec))}
    if missing := wanted - endpoints.keys():
        raise ValueError(f"no endpoint for {', '.join(sorted(missing))}")
    if unknown := endpoints.keys() - wanted - {TOOLS}:
        raise ValueError(f"{', '.join(sorted(unknown))}: the machine has no such channel")


def _base(spec: MachineSpec, facts: Facts) -> list[str]:
    argv = ["-name", keyvals("", [("guest", spec.name), ("debug-threads", True)])]
    argv += ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += _confinement(spec, facts)
    argv += ["-enable-kvm"] if facts.accel == "kvm" else ["-accel", "tcg"]
    board = _board(spec)
    # With nodes each has its backend, and the machine none of its own.
    whole = {} if spec.numa else {"memory-backend": RAM_ID}
    options = {**whole, **spec.machine_options}
    if isinstance(spec.firmware, Uefi):
        options |= flash_machine_options(spec.firmware, board)
    argv += ["-machine", keyvals(spec.machine, options.items())]
    model = model_of(spec.cpu, facts.accel, board.tcg_cpu)
    argv += ["-cpu", cpu_option(spec.cpu, model, facts.cpu_flags)]
    argv += ["-smp", smp_option(spec.cpu), "-m", memory_option(spec.memory)]
    if spec.memory.lock:
        argv += ["-overcommit", keyvals("", [("mem-lock", True)])]
    if spec.uuid is not None:
        argv += ["-uuid", spec.uuid]
    return argv


def _board(spec: MachineSpec) -> Board:
    board = board_of(spec.machine, spec.arch)
    assert board is not None, "that there is none is a fault"
    return board


def _confinement(spec: MachineSpec, facts: Facts) -> Iterator[str]:
    if spec.sandbox:
        # QEMU changes its user after the filter is in place and would be killed by it.
        elevate = None if spec.run_as is not None else "deny"
        yield "-sandbox"
        yield keyvals(
            "on",
            [
                ("obsolete", "deny"),
                ("elevateprivileges", elevate),
                ("spawn", "deny"),
                ("resourcecontrol", "deny"),
            ],
        )
    if spec.run_as is None:
        return
    if facts.run_with_user:
        yield from ("-run-with", keyvals("", [("user", spec.run_as)]))
    else:
        yield from ("-runas", spec.run_as)


def _boot(spec: MachineSpec, facts: Facts, store: int | None) -> Iterator[str]:
    if isinstance(spec.firmware, str):
        yield from ("-bios", spec.firmware)
    elif spec.firmware is not None:
        if facts.flash is None:
            raise ValueError("the facts do not tell which firmware the UEFI is")
        yield from flash_options(spec.firmware, _board(spec), facts.flash, store)
    if spec.kernel is not None and spec.kernel.image is not None:
        yield from ("-kernel", spec.kernel.image)
        if spec.kernel.initrd is not None:
            yield from ("-initrd", spec.kernel.initrd)
        if spec.kernel.append:
            yield from ("-append", spec.kernel.append)
    if spec.no_reboot:
        yield "-no-reboot"


def _hardware(spec: MachineSpec, facts: Facts, endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    if family_of(spec.machine) == "microvm":
        # The old virtio-mmio dialect lacks what vsock needs.
        yield from ("-global", "virtio-mmio.force-legacy=false")
    for port in parts.serial_ports(spec):
        yield from ("-serial", port)
    placed = layout_of(spec)
    dicts = {
        "-object": parts.objects(spec),
        "-blockdev": parts.blockdevs(spec, facts.bases),
        "-netdev": parts.netdevs(spec, endpoints),
        "-device": (*_added_cpus(spec, facts), *parts.devices(spec, placed)),
    }
    for option, items in dicts.items():
        for item in items:
            yield from (option, to_json(item))
        if option == "-object":  # the backends that nodes name are there by now
            for node in numa_options(spec.numa):
                yield from ("-numa", node)


def _added_cpus(spec: MachineSpec, facts: Facts) -> Iterator[Json]:
    model = model_of(spec.cpu, facts.accel, _board(spec).tcg_cpu)
    for number in spec.cpu.added:
        yield cpu_device(spec.cpu, number, model)


def pretty(argv: list[str]) -> str:
    """A command to read and to paste into a shell: quoted, one option a line."""
    lines: list[str] = []
    for word in argv:
        quoted = shlex.quote(word)
        if not lines or word.startswith("-"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join(lines)
