from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.testing.guests import cpio

NAMES = st.text("abc.-ä", min_size=1, max_size=8).filter(lambda name: name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def unpack(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Path → mode, data, device number: newc read by the format's definition."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        start = position + 110
        name = data[start : start + fields[11] - 1].decode()
        body = (start + fields[11] + 3) // 4 * 4
        position = (body + fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert position == len(data)
            return found
        assert name not in found
        number = (fields[9], fields[10])
        found[name] = (fields[1], data[body : body + fields[6]], number)


@given(st.dictionaries(PATHS, st.binary(max_size=9)))
def test_what_goes_in_comes_out(files: dict[str, bytes]) -> None:
    # a path that is a folder of another one is a folder, and not a file too
    files = {p: d for p, d in files.items() if not any(q.startswith(f"{p}/") for q in files)}
    packed = cpio.archive(cpio.regular(path, data) for path, data in files.items())
    found = unpack(packed)
    assert {p: d for p, (mode, d, _) in found.items() if stat.S_ISREG(mode)} == files


@given(st.dictionaries(PATHS, st.binary(max_size=9), max_size=5))
def test_the_order_of_the_entries_makes_no_difference(files: dict[str, bytes]) -> None:
    entries = [cpio.regular(path, data) for path, data in files.items()]
    assert cpio.archive(entries) == cpio.archive(reversed(entries))


def test_parents_are_made_before_what_they_hold() -> None:
    names = list(unpack(cpio.archive([cpio.regular("a/b/c", b"x"), cpio.regular("a.b", b"")])))
    assert names == ["a", "a.b", "a/b", "a/b/c"]
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


def test_links_devices_and_modes() -> None:
    found = unpack(
        cpio.archive(
            [
                cpio.link("bin/sh", "busybox"),
                cpio.device("dev/console", 5, 1),
                cpio.regular("init", b"#!", 0o755),
                cpio.directory("root", 0o700),
            ]
        )
    )
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["root"][0] == stat.S_IFDIR | 0o700


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../b", ""])
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a relative, clean path"):
        cpio.archive([cpio.regular(path, b"")])


def test_one_path_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is in the archive twice"):
        cpio.archive([cpio.regular("a", b"1"), cpio.regular("a", b"2")])
