"""The block nodes of a running machine: which layers a disk has, and what holds them.

`x-debug-query-block-graph` is the one command that tells the edges between nodes; QEMU has
it since 4.0 and changes of its form would be seen here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.drives import drives_of
from qmpkit.operations._protocols import Monitor
from qmpkit.spec.block import Disk, disk_node
from qmpkit.spec.snapshots import layer_node
from qmpkit.spec.suggest import among

__all__ = ["FDSETS", "Graph", "Layer", "file_of", "graph_of", "lent_files", "node_above"]
__all__ += ["nodes_of"]

FDSETS = "/dev/fdset/"
"""How QEMU names the files that it was handed over as descriptors (`add-fd`)."""

_HERE = re.compile(r"(/\.)+/")


@attrs.frozen
class Layer:
    """One image of a disk's chain.

    `node` and `file_node` are its nodes, of the drivers `format` and `driver`; `file` is its
    path.  `size`: bytes that the guest sees, `used`: bytes that it takes on the host,
    `cluster_size`: those that the format counts in, where it does.
    """

    node: str
    file_node: str
    file: str
    format: str
    driver: str
    size: int
    used: int
    readonly: bool
    bitmaps: tuple[str, ...] = ()
    cluster_size: int | None = None

    @property
    def is_nameless(self) -> bool:
        """Whether QEMU has named its node itself, having opened it for the one above."""
        return self.node.startswith("#")


class Graph:
    """The nodes at one moment; `graph_of` asks for them."""

    def __init__(
        self,
        machine: str,
        nodes: Mapping[str, Mapping[str, Any]],
        children: Mapping[str, Mapping[str, str]],
        devices: Mapping[str, tuple[str, str]],
    ) -> None:
        self._machine = machine
        self._nodes = nodes
        self._children = children
        self._devices = devices

    def __contains__(self, node: str) -> bool:
        return node in self._nodes

    def device(self, disk: str) -> str:
        """The QOM path of a disk's device, as commands about its back end want it."""
        return self._device(disk)[0]

    def chain(self, disk: str) -> tuple[Layer, ...]:
        """The layers of a disk, the one that is written to first.

        SpecInvalid when the machine has no such disk, or nothing is in its drive.
        """
        _, node = self._device(disk)
        return tuple(self._layers(node))

    def below(self, node: str) -> tuple[Layer, ...]:
        """The layers from a node down; none when it is not there."""
        return tuple(self._layers(node)) if node in self else ()

    @property
    def disks(self) -> tuple[str, ...]:
        """The ids of the devices that have something in them."""
        return tuple(disk for disk, (_, node) in self._devices.items() if node)

    @property
    def names(self) -> frozenset[str]:
        """The names of all nodes."""
        return frozenset(self._nodes)

    def _device(self, disk: str) -> tuple[str, str]:
        if disk not in self._devices:
            hint = among(disk, self._devices)
            raise SpecInvalid([Fault(disk, "it has no such disk", hint)], self._whose)
        return self._devices[disk]

    def _layers(self, node: str) -> Iterator[Layer]:
        while node:
            children = self._children.get(node, {})
            if not children.get("file") or self._nodes[node]["drv"] == "throttle":
                raise SpecInvalid([Fault(node, "this node is no image's")], self._whose)
            yield _layer(self._nodes[node], self._nodes[children["file"]])
            node = children.get("backing", "")

    @property
    def _whose(self) -> str:
        return f"machine {self._machine!r}"


def _layer(node: Mapping[str, Any], file_node: Mapping[str, Any]) -> Layer:
    image = node["image"]
    bitmaps = (bitmap["name"] for bitmap in node.get("dirty-bitmaps", ()) if "name" in bitmap)
    return Layer(
        node=node["node-name"],
        file_node=file_node["node-name"],
        file=file_of(file_node),
        format=node["drv"],
        driver=file_node["drv"],
        size=image["virtual-size"],
        used=image.get("actual-size", 0),
        readonly=node["ro"],
        bitmaps=tuple(bitmaps),
        cluster_size=image.get("cluster-size"),
    )


def file_of(node: Mapping[str, Any]) -> str:
    """The path of a node that is a file; one that an overlay names comes as `folder/./name`."""
    return _HERE.sub("/", str(node["file"]))


def node_above(disk: Disk, layer: Layer, taken: frozenset[str] | set[str]) -> str:
    """A name for the node that is to take the place of *layer*, the disk's."""
    below = disk_node(disk) if layer.is_nameless else layer.node
    return layer_node(below, taken)


def nodes_of(layers: Iterable[Layer]) -> tuple[str, ...]:
    """The nodes that layers have, from the top down, but for those that QEMU has named itself.

    Those it removes by itself, too, with the last one above them.
    """
    nodes = (node for layer in layers for node in (layer.node, layer.file_node))
    return tuple(node for node in nodes if not node.startswith("#"))


async def graph_of(machine: Monitor) -> Graph:
    """The nodes of the machine now."""
    nodes = await _with_files(
        machine, await machine.execute("query-named-block-nodes", {"flat": True})
    )
    graph = await machine.execute("x-debug-query-block-graph")
    blocks = await machine.execute("query-block")
    names = {item["id"]: item["name"] for item in graph["nodes"]}
    children: dict[str, dict[str, str]] = {}
    for edge in graph["edges"]:
        below = children.setdefault(names[edge["parent"]], {})
        below[edge["name"]] = names[edge["child"]]
    return Graph(
        machine.name,
        {node["node-name"]: node for node in nodes},
        children,
        dict(_devices(blocks)),
    )


async def _with_files(machine: Monitor, nodes: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The nodes with the file of each that came as a descriptor, as its lender has noted it."""
    if not any(str(node["file"]).startswith(FDSETS) for node in nodes):
        return nodes
    files = {f"{FDSETS}{number}": file for number, file in (await lent_files(machine)).items()}
    return [{**node, "file": files.get(node["file"], node["file"])} for node in nodes]


async def lent_files(machine: Monitor) -> dict[int, str]:
    """The file of each set of descriptors, by its number (`query-fdsets`)."""
    sets = await machine.execute("query-fdsets")
    return {it["fdset-id"]: fd["opaque"] for it in sets for fd in it["fds"] if fd.get("opaque")}


def _devices(blocks: list[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    for device, block in drives_of(blocks):
        yield device, (block["qdev"], block.get("inserted", {}).get("node-name", ""))
