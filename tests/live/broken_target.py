"""A machine whose new files cannot be written: each one that QEMU is told to open gives EIO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

import qmpkit

__all__ = ["broken_targets"]


@contextmanager
def broken_targets(
    vm: qmpkit.VM,
    monkeypatch: pytest.MonkeyPatch,
    which: Callable[[str], bool] = lambda node: True,
) -> Iterator[None]:
    """Have QEMU put a blkdebug on the files that are added, chosen by the names of their nodes.

    It fails all writes to them.  Queries show what they would without it.
    """
    files: dict[str, str] = {}
    real = vm.machine.execute

    async def execute(command: str, arguments: Any = None, /, **more: Any) -> Any:
        adds = command == "blockdev-add" and arguments["driver"] == "file"
        if adds and which(arguments["node-name"]):
            files[arguments["node-name"]] = arguments["filename"]
            arguments = _broken(arguments)
        answer = await real(command, arguments, **more)
        if command == "query-named-block-nodes":
            for node in answer:
                if node["node-name"] in files:
                    node |= {"drv": "file", "file": files[node["node-name"]]}
            # The file below it has no name of its own.
            answer = [node for node in answer if not _is_below(node, files)]
        return answer

    monkeypatch.setattr(vm.machine, "execute", execute)
    yield
    monkeypatch.undo()


def _broken(arguments: Mapping[str, Any]) -> dict[str, Any]:
    name = arguments["node-name"]
    inner = {key: value for key, value in arguments.items() if key != "node-name"}
    rule = {"event": "none", "iotype": "write", "errno": 5}
    return {"driver": "blkdebug", "node-name": name, "image": inner, "inject-error": [rule]}


def _is_below(node: Mapping[str, Any], files: Mapping[str, str]) -> bool:
    return node["node-name"].startswith("#") and node["file"] in files.values()
