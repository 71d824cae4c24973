"""What a machine is started from after a change of its layers: pure decisions."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from qmpkit import Disk, Layer, MachineSpec, Snapshot, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations.block.graph import Graph, nodes_of
from qmpkit.operations.block.merge import deleted_from
from qmpkit.operations.block.recovery import settled
from qmpkit.supervisor.layers import carried_over, refuse_points


def layer(number: int, file: str = "") -> Layer:
    suffix = f"-{number}" if number else ""
    return Layer(
        node=f"qk-disk0{suffix}",
        file_node=f"qk-disk0{suffix}-file",
        file=file or f"/l{number}.qcow2",
        format="qcow2",
        driver="file",
        size=1 << 20,
        used=4096,
        readonly=number > 0,
    )


def snapped() -> MachineSpec:
    """Of three points, each with a layer, the last of which is written to."""
    top = Disk("/l3.qcow2", format="qcow2", node="qk-disk0-3", origin="/l0.qcow2")
    names = ["a", "b", "c"]
    points = [
        Snapshot(
            name=name,
            parent=parent,
            disks={"disk0": f"/l{number}.qcow2"},
            formats={"disk0": "qcow2"},
        )
        for number, (name, parent) in enumerate(zip(names, [None, *names], strict=False))
    ]
    return MachineSpec(name="m", disks=[top], snapshots=points, snapshot="c")


def test_a_middle_point_goes_and_its_heirs_follow() -> None:
    spec = snapped()
    done = deleted_from(spec, "disk0", spec.snapshots[1], layer(2), layer(1), active=False)
    assert [(it.name, it.parent, it.disks["disk0"]) for it in done.snapshots] == [
        ("a", None, "/l0.qcow2"),
        ("c", "a", "/l1.qcow2"),
    ]
    assert done.disks == spec.disks and done.snapshot == "c"


def test_the_last_point_goes_and_the_disk_is_on_its_layer() -> None:
    spec = snapped()
    done = deleted_from(spec, "disk0", spec.snapshots[2], layer(3), layer(2), active=True)
    assert done.snapshot == "b"
    assert (done.disks[0].file, done.disks[0].node) == ("/l2.qcow2", "qk-disk0-2")
    assert done.disks[0].origin == "/l0.qcow2"


def test_back_on_the_first_file_nothing_tells_of_layers() -> None:
    spec = attrs.evolve(snapped(), snapshots=snapped().snapshots[:1], snapshot="a")
    done = deleted_from(spec, "disk0", spec.snapshots[0], layer(3), layer(0), active=True)
    assert done.disks[0].origin is None
    assert (done.snapshots, done.snapshot) == ((), None)


def test_a_point_of_two_disks_stays_until_both_are_merged() -> None:
    spec = snapped()
    point = attrs.evolve(
        spec.snapshots[2],
        disks={"disk0": "/l2.qcow2", "disk1": "/x.qcow2"},
        formats={"disk0": "qcow2", "disk1": "raw"},
    )
    spec = attrs.evolve(spec, snapshots=(*spec.snapshots[:2], point))
    done = deleted_from(spec, "disk0", point, layer(3), layer(2), active=True)
    assert done.snapshots[2].disks == {"disk1": "/x.qcow2"}
    assert done.snapshot == "c"


def test_a_new_spec_goes_on_with_the_layers() -> None:
    wanted = MachineSpec(
        name="m", memory="1GiB", disks=[Disk("/l0.qcow2", format="qcow2"), Disk("/n", format="raw")]
    )
    carried = carried_over(wanted, snapped())
    assert carried.disks[0].file == "/l3.qcow2" and carried.disks[0].node == "qk-disk0-3"
    assert carried.disks[1] == wanted.disks[1]
    assert carried.snapshots == snapped().snapshots
    other = attrs.evolve(wanted, disks=[Disk("/other.qcow2", format="qcow2")])
    assert carried_over(other, snapped()).disks == other.disks, "its owner wants another file"


def test_the_nodes_of_layers_but_those_qemu_named() -> None:
    implicit = attrs.evolve(layer(1), node="#block1", file_node="#block2")
    assert nodes_of([layer(0), implicit]) == ("qk-disk0", "qk-disk0-file")


def test_a_graph_tells_the_chain_of_a_disk() -> None:
    nodes = {
        name: {
            "node-name": name,
            "drv": "file" if name.endswith("file") else "qcow2",
            "file": f"/x/./{name}",
            "ro": False,
            "image": {"virtual-size": 512, "actual-size": 1},
            "dirty-bitmaps": [{"name": "b", "busy": False}],
        }
        for name in ("top", "top-file", "base", "base-file")
    }
    children = {"top": {"file": "top-file", "backing": "base"}, "base": {"file": "base-file"}}
    graph = Graph("m", nodes, children, {"disk0": ("/path", "top"), "cd0": ("/cd", "")})
    chain = graph.chain("disk0")
    assert [it.file for it in chain] == ["/x/top-file", "/x/base-file"]
    assert chain[0].bitmaps == ("b",)
    assert graph.device("disk0") == "/path"
    assert graph.disks == ("disk0",)
    with pytest.raises(SpecInvalid, match="did you mean 'disk0'"):
        graph.chain("disk")


def _change(tmp_path: Path, *, sure: bool) -> Change:
    old = MachineSpec(name="m", disks=[Disk(tmp_path / "old.raw", format="raw")])
    new = MachineSpec(name="m", disks=[Disk(tmp_path / "new.raw", format="raw")])
    for name in ("old", "new"):
        (tmp_path / f"{name}.raw").write_bytes(bytes(512))
    return Change(
        what="move",
        spec=new,
        begun=old,
        sure=sure,
        files=(str(tmp_path / "new.raw"),),
    )


def test_what_was_sure_is_done_when_its_files_are_there(tmp_path: Path) -> None:
    change = _change(tmp_path, sure=True)
    gone = attrs.evolve(change, obsolete=(str(tmp_path / "old.raw"),))
    assert settled(gone) == change.spec
    assert [path.name for path in tmp_path.iterdir()] == ["new.raw"]
    assert settled(gone) == change.spec, "killed in the middle of it, it is done again"


def test_what_was_sure_without_its_files_is_undone(tmp_path: Path) -> None:
    change = _change(tmp_path, sure=True)
    (tmp_path / "new.raw").unlink()
    assert settled(change) == change.begun


def test_what_was_not_sure_is_undone_and_leaves_nothing(tmp_path: Path) -> None:
    change = _change(tmp_path, sure=False)
    made = attrs.evolve(change, inodes=((tmp_path / "new.raw").stat().st_ino,))
    assert settled(made) == change.begun
    assert [path.name for path in tmp_path.iterdir()] == ["old.raw"]


def test_a_file_that_we_have_not_made_stays(tmp_path: Path) -> None:
    change = _change(tmp_path, sure=False)
    (tmp_path / "new.raw").write_bytes(b"x" * 512)
    assert settled(change) == change.begun
    (tmp_path / "new.raw").unlink()
    (tmp_path / "other.raw").write_bytes(b"mine")
    (tmp_path / "other.raw").rename(tmp_path / "new.raw")
    assert settled(attrs.evolve(change, inodes=(1,))) == change.begun
    assert (tmp_path / "new.raw").read_bytes() == b"mine"


def test_a_disk_is_known_by_its_file_and_not_by_its_place() -> None:
    other = Disk("/n.raw", format="raw")
    wanted = MachineSpec(name="m", disks=[other, Disk("/l0.qcow2", format="qcow2")])
    carried = carried_over(wanted, snapped())
    assert [disk.file for disk in carried.disks] == ["/n.raw", "/l3.qcow2"]
    assert [list(point.disks) for point in carried.snapshots] == [["disk1"]] * 3
    assert carried_over(snapped(), snapped()) == snapped(), "also from a spec that followed"
    stale = attrs.evolve(snapped(), disks=[attrs.evolve(snapped().disks[0], file="/l1.qcow2")])
    assert carried_over(stale, snapped()).disks == snapped().disks


def test_points_of_disks_that_are_gone_go() -> None:
    two = attrs.evolve(
        snapped().snapshots[1],
        disks={"disk0": "/l1.qcow2", "disk1": "/x.qcow2"},
        formats={"disk0": "qcow2", "disk1": "qcow2"},
    )
    disks = [*snapped().disks, Disk("/y.qcow2", format="qcow2", origin="/x.qcow2")]
    points = (snapped().snapshots[0], two, snapped().snapshots[2])
    known = attrs.evolve(snapped(), disks=disks, snapshots=points)
    carried = carried_over(MachineSpec(name="m", disks=[Disk("/x.qcow2", format="qcow2")]), known)
    assert [(it.name, it.parent, it.disks) for it in carried.snapshots] == [
        ("b", None, {"disk0": "/x.qcow2"})
    ]
    assert carried.snapshot == "b"


def test_a_disk_is_not_to_write_to_a_point() -> None:
    refuse_points(snapped())
    wrong = attrs.evolve(snapped(), disks=[Disk("/l1.qcow2", format="qcow2")])
    with pytest.raises(SpecInvalid, match="is what the snapshot 'b' holds"):
        refuse_points(wrong)
