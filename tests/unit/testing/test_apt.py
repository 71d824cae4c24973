from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.testing.guests.apt import Apt, AptFailed, Package, dependency_closure, parse_packages

SHOWN = """\
Package: agent
Version: 1:7.2+x-1
Section: otherosfs
Depends: libc6 (>= 2.36), libglib (>= 2.73) | libother, init:any
Pre-Depends: dpkg
Description: an agent
 Depends: not this

Package: libc6
Version: 2.36-9
Section: libs

Package: agent
Version: 0.9
"""


def test_stanzas_are_read() -> None:
    assert parse_packages(SHOWN) == {
        "agent": Package("agent", "1:7.2+x-1", "otherosfs", ("libc6", "libglib", "init", "dpkg")),
        "libc6": Package("libc6", "2.36-9", "libs"),
    }


def test_an_epochs_colon_is_escaped_in_file_names() -> None:
    assert Package("agent", "1:7.2").file_name == "agent_1%3a7.2_"


def known(**depends: str) -> dict[str, Package]:
    return {
        name: Package(name, "1", "libs" if name.startswith("lib") else "admin", tuple(d.split()))
        for name, d in depends.items()
    }


def test_only_libraries_come_along() -> None:
    packages = known(agent="liba init", liba="libb gone", libb="liba", init="libc", libc="")
    assert list(dependency_closure(packages, ["agent"])) == ["agent", "liba", "libb"]


def test_an_unknown_root_is_an_error() -> None:
    with pytest.raises(AptFailed, match="package agent is not in"):
        dependency_closure({}, ["agent"])


def test_without_apt_the_host_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks, match=r"apt-get and dpkg-deb are not here\. Cure: run on Debian"):
        Apt(tmp_path / "state", "bookworm")
