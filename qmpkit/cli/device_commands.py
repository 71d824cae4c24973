"""`qmpkit device …` as the shell sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Json, Name

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

__all__ = ["DEVICE"]


def _kinds(_: CompletionContext) -> list[str]:
    from qmpkit.spec.pluggable import NETWORK, PLUGGABLE

    return [*PLUGGABLE, NETWORK]


def _word(_: object, value: str) -> None:
    # An unset variable of a script is no name, and would be another path of the API.
    if not value or "/" in value:
        raise ValueError(f"{value!r} is no name.")


DeviceId = Annotated[str, Parameter(help="Its id: disk1, nic0, rng1.", validator=_word)]


def list_(name: Name, /, *, farm: Farm = None, json: Json = False) -> int:
    """Show a machine's disks, NICs and other devices, and how many root ports are left."""
    from qmpkit.cli.device_actions import list_devices

    return list_devices(name, farm, as_json=json)


def add(
    name: Name,
    kind: Annotated[
        str, Parameter(help="disk, user, tap, network, rng, usb-tablet …", completer=_kinds)
    ],
    /,
    *fields: Annotated[
        str, Parameter(help="What it is, as in a profile: file=data.qcow2 format=qcow2 make=10GiB.")
    ],
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Plug a device into a machine that runs; a restart has it too.

    Examples:
      qmpkit device add web disk file=data.qcow2 format=qcow2 make=10GiB
      qmpkit device add web user forwards='["2222:22"]'
      qmpkit device add web network network=lan
      qmpkit device add web rng
    """
    from qmpkit.cli.device_actions import add_device

    return add_device(name, kind, fields, farm, as_json=json)


def remove(
    name: Name,
    device: DeviceId,
    /,
    *,
    grace: Annotated[
        int | None,
        Parameter(
            help="Seconds that the guest has to let go of it. Default: 15.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    unmounted: Annotated[
        bool,
        Parameter(help="Not a disk that the guest's agent says is mounted.", negative=""),
    ] = False,
    farm: Farm = None,
) -> int:
    """Have a machine's guest let go of a device; a disk's image stays where it is.

    Unmount a disk in the guest first: what is not written yet is lost.
    """
    from qmpkit.cli.device_actions import remove_device

    return remove_device(name, device, grace, farm, unmounted=unmounted)


def link(
    name: Name,
    nic: DeviceId,
    state: Annotated[Literal["up", "down"], Parameter(help="Whether the cable is in.")],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Pull the cable of a NIC, or put it in again; a restart has it so, too."""
    from qmpkit.cli.device_actions import set_link

    return set_link(name, nic, farm, up=state == "up")


DEVICE: dict[str, Callable[..., int]] = {"list": list_, "add": add, "remove": remove, "link": link}
