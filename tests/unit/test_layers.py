"""Data flows one way: a module imports only what stands to its left."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import qmpkit

PACKAGE = Path(qmpkit.__file__).parent

LAYERS = [
    {"errors", "_lazy", "_paths", "_trio"},
    {"spec"},
    {"qmp"},
    {"process"},
    {"host"},
    {"images"},
    {"backups"},
    {"machine"},
    {"operations"},
    {"vm", "_running", "_receiving"},
    {"templates"},
    {"networks"},
    {"supervisor"},
    {"farm"},
    {"server"},
    {"testing"},
    {"cli"},  # `qmpkit image build` makes a guest's disk
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def top(module: str) -> str:
    """`qmpkit.spec.argv` → `spec`."""
    return module.split(".")[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Names of qmpkit modules that *path* imports when it runs (not for typing only)."""
    tree = ast.parse(path.read_text())
    for node in _running_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; imports are absolute here"
            if node.module == "qmpkit":
                yield from (f"qmpkit.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("qmpkit."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("qmpkit."))


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running_nodes(child)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))
def test_imports_only_to_the_left(path: Path) -> None:
    own = module_name(path)
    for imported in imports(path):
        if top(imported) not in RANK:
            continue  # a public name of the package itself
        assert RANK[top(imported)] <= RANK[top(own)], f"{own} imports {imported}"


def test_no_module_imports_itself_through_others() -> None:
    """Also not inside a function or for typing only: whoever reads one would have to read all."""
    known = {module_name(path) for path in MODULES}
    edges = {}
    for path in MODULES:
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= inner & known or {node.module}
        edges[module_name(path)] = named & known
    graphlib.TopologicalSorter(edges).prepare()  # CycleError names the circle


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))
def test_every_module_has_a_layer(path: Path) -> None:
    assert top(module_name(path)) in RANK


@pytest.mark.parametrize("layer", ["spec", "errors"])
def test_pure_layers_do_not_load_trio(layer: str) -> None:
    for path in MODULES:
        if top(module_name(path)) == layer:
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert not names & {"trio", "asyncio", "subprocess"}, path


def test_a_reverse_edge_would_be_seen(tmp_path: Path) -> None:
    """The check itself works: an import inside a function counts, a typing-only one does not."""
    source = tmp_path / "sample.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from qmpkit.vm import VM\n"
        "def f():\n    from qmpkit.machine.launch import launched\n"
    )
    assert list(imports(source)) == ["qmpkit.machine.launch"]


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for folder in (PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent / "scripts")
        for p in folder.rglob("*.py")
    ),
    ids=lambda p: p.name,
)
def test_no_module_past_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
