"""What is said when no root port is left: how many there are, and the line that makes more."""

from __future__ import annotations

import pickle

import pytest

from qmpkit import NoPortLeft


@pytest.mark.parametrize(
    ("ports", "spare", "words"),
    [
        (0, 0, "started with none (start the machine with more: root_ports = 8 in its profile)"),
        (1, 1, "the only one holds a device (remove it, or"),
        (3, 1, "all 3 hold a device (remove one, or start the machine with more: root_ports = 8 "),
        (6, 6, "root_ports = 12 in its profile"),
        (40, 20, "root_ports = 40 in its profile"),
        (130, 100, "root_ports = 160 in its profile"),
        (200, 160, "remove one, or put disks on one controller: 160 spare ports are the most"),
    ],
)
def test_its_words(ports: int, spare: int, words: str) -> None:
    error = NoPortLeft("web", "disk4", ports, spare)
    assert words in str(error) and "machine 'web'" in str(error)
    assert "no root port is left for 'disk4'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.ports, again.spare) == (str(error), ports, spare)
