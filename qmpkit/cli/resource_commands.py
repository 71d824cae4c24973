"""`qmpkit cpu …` and `qmpkit memory …` as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter, validators

from qmpkit.cli.device_commands import DeviceId
from qmpkit.cli.farm_words import Farm, Json, Name

__all__ = ["CPU", "MEMORY"]

_NATURAL = validators.Number(gte=0)

Grace = Annotated[
    int | None,
    Parameter(help="Seconds that the guest has. Default: 15 to 60.", validator=_NATURAL),
]
Place = Annotated[int | None, Parameter(validator=_NATURAL)]


def list_cpus(name: Name, /, *, farm: Farm = None, json: Json = False) -> int:
    """Show a machine's places for processors, and which hold one."""
    from qmpkit.cli.resource_actions import list_cpus

    return list_cpus(name, farm, as_json=json)


def add_cpus(
    name: Name,
    count: Annotated[int, Parameter(help="How many.", validator=validators.Number(gte=1))] = 1,
    /,
    *,
    socket: Place = None,
    core: Place = None,
    thread: Place = None,
    online: Annotated[
        bool, Parameter(help="Have the guest's agent bring them up.", negative="")
    ] = False,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Plug processors into the lowest empty places; a restart has them too.

    Up to maxcpus of its start. Linux mostly leaves them offline unless --online.
    """
    from qmpkit.cli.resource_actions import add_cpus

    asked = {"socket": socket, "core": core, "thread": thread}
    where = {key: value for key, value in asked.items() if value is not None}
    return add_cpus(name, {"count": count, "online": online, **where}, farm, as_json=json)


def remove_cpu(
    name: Name,
    cpu: DeviceId,
    /,
    *,
    grace: Grace = None,
    unsafe: Annotated[
        bool, Parameter(help="Under TCG too, where QEMU may die of it.", negative="")
    ] = False,
    farm: Farm = None,
) -> int:
    """Have a machine's guest let go of a processor that was added."""
    from qmpkit.cli.resource_actions import remove

    return remove("cpus", name, cpu, grace, farm, unsafe=unsafe)


def list_memory(name: Name, /, *, farm: Farm = None, json: Json = False) -> int:
    """Show a machine's memory, its modules, and what the balloon leaves of it."""
    from qmpkit.cli.resource_actions import list_memory

    return list_memory(name, farm, as_json=json)


def add_memory(
    name: Name,
    size: Annotated[str, Parameter(help="1GiB: a multiple of 128MiB.")],
    /,
    *,
    node: Annotated[
        int | None, Parameter(help="The guest's NUMA node.", validator=_NATURAL)
    ] = None,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Plug a module of memory into a machine; a restart has it too.

    It takes one of the slots that the machine was started with.
    """
    from qmpkit.cli.resource_actions import add_memory

    return add_memory(name, size, node, farm, as_json=json)


def remove_memory(name: Name, dimm: DeviceId, /, *, grace: Grace = None, farm: Farm = None) -> int:
    """Have a machine's guest let go of a module of memory."""
    from qmpkit.cli.resource_actions import remove

    return remove("memory", name, dimm, grace, farm)


def balloon(
    name: Name,
    size: Annotated[str, Parameter(help="What the guest is to have: 512MiB.")],
    /,
    *,
    grace: Grace = None,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Have a machine's guest come down to a size of memory, or up again."""
    from qmpkit.cli.resource_actions import set_balloon

    return set_balloon(name, size, grace, farm, as_json=json)


def resize(
    name: Name,
    size: Annotated[str, Parameter(help="What the guest is to use of it: 1GiB.")],
    /,
    *,
    device: Annotated[str | None, Parameter(help="Its id, when there are several.")] = None,
    grace: Grace = None,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Have a machine's guest use so much of a virtio-mem device; a restart has it so, too.

    `qmpkit device add NAME virtio-mem size=4GiB` plugs one in.
    """
    from qmpkit.cli.resource_actions import resize

    return resize(name, size, device, grace, farm, as_json=json)


CPU: dict[str, Callable[..., int]] = {"list": list_cpus, "add": add_cpus, "remove": remove_cpu}
MEMORY: dict[str, Callable[..., int]] = {
    "list": list_memory,
    "add": add_memory,
    "remove": remove_memory,
    "balloon": balloon,
    "resize": resize,
}
