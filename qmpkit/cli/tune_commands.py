"""`qmpkit host`, `top` and `tune` as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Json, Name, Names

__all__ = ["FARM", "HOST"]


def _fields(_: object) -> list[str]:
    import attrs

    from qmpkit.spec.resources import Resources

    return ["pin=", *(f"{field.name}=" for field in attrs.fields(Resources))]


def host(*, json: Json = False) -> int:
    """Show what this host is made of, and which machine sits on which processors.

    Sockets, cores, NUMA nodes with their memory and huge pages, caches, KSM, and where limits
    can be set; of every QEMU that we may look into its vCPUs and other threads.
    """
    from qmpkit.cli.host import show_host

    return show_host(as_json=json)


def top(
    names: Names = (),
    /,
    *,
    every: Annotated[
        float,
        Parameter(help="Seconds of an interval.", validator=validators.Number(gte=0.1, lte=86400)),
    ] = 2.0,
    once: Annotated[bool, Parameter(help="Only one interval.")] = False,
    farm: Farm = None,
    json: Annotated[bool, Parameter(help="As JSON, a line for each interval.")] = False,
) -> int:
    """Show what machines use, until Ctrl-C: processors, memory, disks, network.

    CPU is of one processor: 200 % are two. WAITED is how much more it would have been had a
    processor been free, for guests that is steal. Network is counted of tap devices.
    """
    from qmpkit.cli.top import watch

    return watch(names, farm, every=every, once=once, as_json=json)


def tune(
    name: Name,
    changes: Annotated[
        tuple[str, ...],
        Parameter(
            help='FIELD=VALUE: pin=2-3, cpu_max=1.5, pin=["2","3"]; null takes one away.',
            completer=_fields,
        ),
    ] = (),
    /,
    *,
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Change what a running machine is given of its host, or without changes show it.

    The fields are pin (of cpu) and those of resources: emulator, iothreads, policy, priority,
    nice, and the limits cpu_max, cpu_weight, memory_max, memory_high, pids_max, io_max, which
    need that it was started with one. They hold at once, and after a restart.
    """
    from qmpkit.cli.tune import change

    return change(name, changes, farm, as_json=json)


HOST: tuple[Callable[..., Any], ...] = (host,)
FARM: tuple[Callable[..., Any], ...] = (top, tune)
