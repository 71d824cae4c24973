"""The commands as the shell sees them: words, options, help.

What they do lies in modules that are imported when a command runs, so that
`qmpkit --help` and completion load neither trio nor the library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

__all__ = ["ALL"]


def _profile_names(_: object) -> list[str]:
    from qmpkit.spec.profile import profile_names

    return list(profile_names())


def _firmware_words(_: object) -> list[str]:
    return ["bios", "uefi"]


Profile = Annotated[
    str,
    Parameter(
        help="A shipped profile's name (see `qmpkit profiles`), or a file: ./web.toml",
        completer=_profile_names,
    ),
]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Change the profile: memory=2GiB, kernel.append=quiet, disks[0].cache=none. "
        "The value is JSON when it can be, else text; null takes the key out. Repeatable.",
        allow_leading_hyphen=True,
        consume_multiple=False,
    ),
]
Headless = Annotated[bool, Parameter(help="Show a status line instead of the guest's console.")]
ToolsSocket = Annotated[
    Path | None,
    Parameter(
        help="Where to make the monitor for other programs. Default: in the runtime directory."
    ),
]
ReportJson = Annotated[
    bool, Parameter(name="--json", help="Print the exit report as JSON; implies --headless.")
]
_IMAGE = Group("Options for a disk image", sort_key=1)
_AT_LEAST_1 = validators.Number(gte=1)


def profiles(
    *, json: Annotated[bool, Parameter(help="A JSON list; memory in bytes.")] = False
) -> None:
    """List the shipped profiles."""
    from qmpkit.cli.listing import list_profiles

    list_profiles(as_json=json)


async def argv(
    profile: Profile,
    /,
    *,
    set: Overrides = (),
    paused: Annotated[bool, Parameter(help="With -S: the guest waits for `cont`.")] = False,
    sockets: Annotated[
        Path, Parameter(help="Directory of the sockets in the command. Default: this one.")
    ] = Path(),
    json: Annotated[bool, Parameter(help="The words as a JSON list.")] = False,
) -> None:
    """Print QEMU's command line for a profile.

    It can be read, and pasted into a shell. It is what `run` would start on this host,
    with sockets to connect to where `run` uses inherited ones. Nothing is created.
    """
    from qmpkit.cli.argv import print_argv

    await print_argv(profile, set, paused=paused, sockets=sockets, as_json=json)


async def run(
    what: Annotated[
        str,
        Parameter(
            help="A disk image (debian.qcow2), its name in the store (see `qmpkit image ls`), "
            "a shipped profile's name (see `qmpkit profiles`), a profile's file (web.toml), or the "
            "folder of a saved machine.",
            completer=_profile_names,
        ),
    ],
    /,
    *,
    headless: Headless = False,
    set: Overrides = (),
    paused: Annotated[
        bool, Parameter(help="Leave the guest before its first instruction.")
    ] = False,
    powerdown_grace: Annotated[
        float,
        Parameter(
            help="Seconds the guest has to power down when stopped; 0 ends it at once. "
            "Default: 30.",
            validator=validators.Number(gte=0),
        ),
    ] = 30.0,
    logs: Annotated[
        Path | None, Parameter(help="Directory for logs of the consoles and of QEMU's stderr.")
    ] = None,
    tools_socket: ToolsSocket = None,
    json: ReportJson = False,
    memory: Annotated[
        str | None, Parameter(help="The guest's memory: 4GiB. Short for --set memory=4GiB.")
    ] = None,
    cpus: Annotated[
        int | None, Parameter(help="Its processors. Short for --set cpu=N.", validator=_AT_LEAST_1)
    ] = None,
    write: Annotated[
        bool, Parameter(group=_IMAGE, help="Let the guest write into the image itself.")
    ] = False,
    keep: Annotated[
        Path | None,
        Parameter(
            group=_IMAGE,
            help="Keep the guest's changes in this overlay, which is made, or used again.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        Parameter(
            group=_IMAGE,
            help="Have cloud-init make this user, who may use sudo and log in with your key.",
        ),
    ] = None,
    ssh_key: Annotated[
        tuple[Path, ...],
        Parameter(
            group=_IMAGE,
            help="A public key that may log in. Default with --user: all ~/.ssh/*.pub. Repeatable.",
            consume_multiple=False,
        ),
    ] = (),
    port: Annotated[
        tuple[str, ...],
        Parameter(
            group=_IMAGE,
            help="HOST:GUEST, a port of this host that leads into the guest: 8080:80; 0 for any "
            "free one. Default: 0:22. Repeatable.",
            consume_multiple=False,
        ),
    ] = (),
    firmware: Annotated[
        str | None,
        Parameter(
            group=_IMAGE,
            help="bios, uefi or a file. Default: as the disk wants it.",
            completer=_firmware_words,
        ),
    ] = None,
    arch: Annotated[
        Literal["x86_64", "aarch64", "riscv64"] | None,
        Parameter(
            group=_IMAGE,
            help="The guest's architecture. Default: as the disk says, else this host's.",
        ),
    ] = None,
    format: Annotated[
        Literal["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed"] | None,
        Parameter(group=_IMAGE, help="The image's format. Default: what its header says."),
    ] = None,
    allow: Annotated[
        tuple[Path, ...],
        Parameter(
            group=_IMAGE,
            help="For a stranger's image: the folder in which all files must be that it names. "
            "Default: anywhere. Repeatable.",
            consume_multiple=False,
        ),
    ] = (),
) -> int:
    """Run a machine in the foreground until it ends.

    The terminal becomes the guest's first serial console. Ctrl-] leaves it while the
    machine runs on; Enter then returns to it.

    Ctrl-C (while the console does not have the terminal), SIGTERM or a closed terminal
    stop the machine in order: the guest is asked to power down and QEMU is ended when
    it has not within the grace. A second Ctrl-C ends QEMU at once, a third kills it.

      qmpkit run debian.qcow2 --user me   a disk image; it is not changed
      qmpkit run tiny                     a shipped profile
      qmpkit run ./web.toml               a profile of your own
      qmpkit run /srv/saved/web           a saved machine, which goes on where it was
    """
    from qmpkit.cli.chosen import ImageOptions
    from qmpkit.cli.foreground import Request, run_machine

    short = ("" if memory is None else f"memory={memory}", "" if cpus is None else f"cpu={cpus}")
    return await run_machine(
        Request(
            word=what,
            overrides=(*filter(None, short), *set),
            image=ImageOptions(
                write=write,
                keep=keep,
                format=format,
                arch=arch,
                firmware=firmware,
                user=user,
                ssh_key=ssh_key,
                port=port,
                allow=allow,
            ),
            headless=headless or json,
            paused=paused,
            grace=powerdown_grace,
            logs=logs,
            tools_socket=tools_socket,
            as_json=json,
        )
    )


async def qmp(
    socket: Annotated[Path, Parameter(help="Path of a QMP monitor's unix socket.")],
    command: Annotated[str | None, Parameter(help="For example query-status.")] = None,
    /,
    *arguments: Annotated[
        str,
        Parameter(
            help="Arguments as key=value (keys may nest: a.b=1), or a JSON object. A value is "
            "JSON when it can be, else text."
        ),
    ],
    second: Annotated[
        Path | None, Parameter(help="The same QEMU's second monitor, for when SOCKET is held.")
    ] = None,
    events: Annotated[
        bool, Parameter(help="Then follow the events, a JSON object a line, until Ctrl-C.")
    ] = False,
    json: Annotated[bool, Parameter(help="The reply as JSON on one line.")] = False,
) -> int:
    """Send one QMP command to a QEMU that is already running.

    Prints what QEMU returned. A text (as of human-monitor-command) is printed as it is
    unless --json is given.

      qmpkit qmp vm.sock query-status
      qmpkit qmp vm.sock device_del id=disk1
      qmpkit qmp vm.sock human-monitor-command command-line='info pci'
    """
    from qmpkit.cli.query import ask

    return await ask(socket, command, arguments, second=second, events=events, as_json=json)


def _needs(_: object) -> list[str]:
    from qmpkit.host.doctor import NEEDS

    return list(NEEDS)


async def doctor(
    *,
    require: Annotated[
        tuple[str, ...],
        Parameter(
            help="What must be here, separated by commas; repeatable. Default: run.",
            completer=_needs,
            consume_multiple=False,
        ),
    ] = (),
    json: Annotated[bool, Parameter(help="The report as JSON; sizes in bytes.")] = False,
) -> int:
    """Tell what this host is enough for, and the cure for what it is not.

    Looks at KVM, every QEMU, the programs beside it, firmware, memory, cgroups, network
    and confinement. Changes nothing and needs no root.

    Each line is ok, a note (of use to some), warn (machines run, but not as one would
    hope) or FAIL (something required is lacking). The exit status is 3 after a FAIL, else
    0: without --require whenever machines can be started, be it without KVM. To demand
    more, name it:

      qmpkit doctor --require kvm,images,uefi

      run          starting machines
      kvm          guests at the CPU's own speed
      nested       KVM inside guests
      x86_64       x86_64 guests
      aarch64      aarch64 guests
      riscv64      riscv64 guests
      images       making and changing disk images
      build        building a Debian image
      uefi         guests that boot by UEFI
      secure-boot  guests with Secure Boot
      hugepages    guest memory in huge pages
      limits       limiting what each machine uses
      tap          NICs on tap devices
      vhost-net    tap NICs served by the kernel (vhost)
      bridge       NICs that an ordinary user puts on a bridge
      vsock        vsock devices
      tpm          guests with a TPM
      virtiofs     sharing directories by virtiofs
      passt        NICs through passt
    """
    from qmpkit.cli.doctor import show_report

    return await show_report(require, as_json=json)


def validate(
    file: Annotated[Path, Parameter(help="A file that describes many machines: farm.toml")],
    /,
    *,
    json: Annotated[
        bool, Parameter(help="Everything as JSON, faults too; sizes as in the file.")
    ] = False,
) -> int:
    """Check a file that describes many machines, and show what it describes.

    All faults are told at once, each with its place. Nothing is made or started, and the
    images it names need not be there.
    """
    from qmpkit.cli.farm import validate_farm

    return validate_farm(file, as_json=json)


ALL: tuple[Callable[..., Any], ...] = (doctor, run, profiles, argv, validate, qmp)
