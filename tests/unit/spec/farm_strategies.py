"""Farms that hypothesis makes up: any machine of `strategies.machines`, multiplied and joined."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qmpkit.spec.convert import unstructure_any
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.farm_text import braces_doubled
from qmpkit.spec.health import AgentCheck, Check, ConsoleCheck, Health, ProcessCheck, QmpCheck
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import PATHS, map_fields
from qmpkit.spec.restart import Restart
from tests.unit.spec.strategies import machines, optional, texts

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEvvZ2hlcmUgaXMgYSBrZXkgZm9yIHRlc3RpbmcgaXQ= ada"
NETWORKS: dict[str, dict[str, Any]] = {
    "lan": {"kind": "segment", "subnet": "10.1.0.0/24"},
    "wire": {"kind": "segment", "socket": "stream"},
    "out": {"kind": "nat", "restrict": True},
    "br": {"kind": "bridge", "bridge": "br0", "make": True, "subnet": "10.2.0.0/16"},
}

restarts = st.builds(
    Restart,
    policy=st.sampled_from(["never", "on-failure", "always"]),
    delay=st.integers(0, 10) | st.floats(0, 10),
    intensity=st.integers(0, 9),
).map(unstructure_any)
plain = st.recursive(
    st.booleans() | st.integers(-5, 5) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
seeds = st.fixed_dictionaries(
    {},
    optional={
        "hostname": st.just("{name}-{n}.lab"),
        "user": st.just("ada"),
        "ssh_keys": st.just([KEY]),
        "user_data": st.dictionaries(st.sampled_from(["packages", "runcmd"]), plain),
        "meta_data": st.dictionaries(st.just("role"), plain),
        "write_files": st.lists(
            st.fixed_dictionaries({"path": st.just("/etc/motd"), "content": texts}), max_size=2
        ),
    },
)


@st.composite
def healths(draw: st.DrawFn, spec: MachineSpec) -> dict[str, Any]:
    """Checks that can pass."""
    able: list[st.SearchStrategy[Check]] = [st.just(QmpCheck()), st.just(ProcessCheck())]
    if spec.agent:
        able.append(st.just(AgentCheck()))
    if names := [serial.name for serial in spec.serials]:
        console = st.builds(ConsoleCheck, texts.filter(bool), st.sampled_from(names))
        able.append(console)
    health = st.builds(
        Health,
        checks=st.lists(st.one_of(able), min_size=1, max_size=3, unique_by=str),
        interval=st.integers(1, 9) | st.floats(0.5, 9),
        restart=st.booleans(),
    )
    made: dict[str, Any] = unstructure_any(draw(health))
    return made


@st.composite
def groups(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """A table that can be multiplied: every file has `{name}` in it."""
    made = draw(machines())
    spec = spec_to_dict(made, defaults=draw(st.booleans()))
    left_out = ("schema", "name", "nics", "uuid", "vsock", "vmgenid")
    table: dict[str, Any] = {key: value for key, value in spec.items() if key not in left_out}
    table = map_fields(table, PATHS, lambda _, text: braces_doubled(text))
    for disk in table.get("disks", ()):
        if "file" in disk:  # else an empty CD drive
            disk["file"] += "/{name}"
    if isinstance(table.get("memory"), dict) and "mem_path" in table["memory"]:
        table["memory"]["mem_path"] += "{name}"
    joins: list[dict[str, Any]] = [
        {"name": name} for name in draw(st.lists(st.sampled_from([*NETWORKS]), unique=True))
    ]
    for join in joins:
        if join["name"] == "lan" and draw(st.booleans()):
            join["ip"] = f"10.1.0.{number + 1}{{n}}"
    table["networks"] = joins
    if any(join["name"] == "out" for join in joins):
        table["ports"] = draw(st.lists(st.just({"host": 0, "guest": 22}), max_size=1))
    own = {
        "count": optional(st.integers(0, 3)),
        "restart": optional(restarts),
        "health": optional(healths(made)),
        "cloud_init": optional(seeds),
        "requires": st.just([f"m{number - 1}"] if number else None),
    }
    drawn = {key: draw(strategy) for key, strategy in own.items()}
    return {**table, **{key: value for key, value in drawn.items() if value is not None}}


@st.composite
def farm_dicts(draw: st.DrawFn) -> dict[str, Any]:
    """What `farm_from_dict` reads."""
    number = draw(st.integers(0, 3))
    tables = {f"m{place}": draw(groups(place)) for place in range(number)}
    return {"schema": 1, "networks": NETWORKS, "machines": tables}
