from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.testing.guests.sources import (
    Source,
    for_release,
    host_codename,
    host_sources,
    parse_deb822,
    parse_list,
    render,
)

LIST = """\
# deb http://off.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # the near one
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/vendor.gpg] https://vendor.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://sec bookworm-security main
"""
STANZAS = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
Check-Valid-Until: no

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://mirror.example/debian"


def test_the_one_line_form() -> None:
    assert parse_list(LIST) == [
        Source(MIRROR, "bookworm", ("main", "contrib")),
        Source(
            "https://vendor.example/debian",
            "bookworm",
            ("main",),
            "/etc/vendor.gpg",
        ),
        Source("http://sec", "bookworm-security", ("main",), KEYRING),
    ]


def test_the_stanza_form() -> None:
    found = parse_deb822(STANZAS)
    assert [source.suite for source in found] == ["bookworm", "bookworm-updates"]
    assert {source.uri for source in found} == {MIRROR}
    assert {source.signed_by for source in found} == {KEYRING}
    assert found[0].options == (("check-valid-until", "no"),)


def test_others_that_use_debians_suite_names_are_left_out() -> None:
    uris = [source.uri for source in for_release(parse_list(LIST), "bookworm", "bookworm")]
    assert uris == [MIRROR, "http://sec"]


def test_an_older_release_comes_from_the_same_mirror() -> None:
    sources = [
        Source(MIRROR, "trixie", ("main",)),
        Source("http://sec", "trixie-security", ("main",)),
    ]
    found = for_release(sources, "trixie", "bookworm")
    assert [(s.uri, s.suite) for s in found] == [
        (MIRROR, "bookworm"),
        ("http://sec", "bookworm-security"),
    ]


def test_backports_are_beside_the_release() -> None:
    found = for_release(parse_deb822(STANZAS), "bookworm", "bookworm", backports=True)
    assert [s.suite for s in found] == ["bookworm", "bookworm-backports", "bookworm-updates"]


def test_a_key_written_out_in_the_file_is_kept_whole() -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQIN\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm\nComponents: main\nSigned-By:{key}\n"
    found = for_release(parse_deb822(text), "bookworm", "bookworm")
    assert parse_deb822(render(found)) == found
    assert key in render(found)


def test_what_is_rendered_reads_back() -> None:
    found = for_release(parse_deb822(STANZAS), "bookworm", "bookworm")
    assert parse_deb822(render(found)) == found


def test_no_source_of_debian_is_an_error_with_its_cure() -> None:
    with pytest.raises(HostLacks, match=r"no source of Debian bookworm.*sources\.list\.d"):
        for_release([Source("http://x", "jammy", ("main",))], "bookworm", "bookworm")


def etc(root: Path, name: str, text: str) -> None:
    path = root / "etc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_hosts_files_are_read(tmp_path: Path) -> None:
    etc(tmp_path, "apt/sources.list", "deb http://a bookworm main\n")
    etc(tmp_path, "apt/sources.list.d/b.sources", STANZAS)
    etc(tmp_path, "apt/sources.list.d/c.list", "deb http://c bookworm main\n")
    etc(tmp_path, "apt/sources.list.d/d.list.disabled", "deb http://d bookworm main\n")
    assert [s.uri for s in host_sources(tmp_path)] == ["http://a", MIRROR, MIRROR, "http://c"]


def test_the_code_name_of_the_host(tmp_path: Path) -> None:
    etc(tmp_path, "os-release", 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n')
    assert host_codename(tmp_path) == "trixie"


@pytest.mark.parametrize("text", ["ID=fedora\n", "ID=ubuntu\nVERSION_CODENAME=noble\n", ""])
def test_another_system_is_told_what_it_lacks(tmp_path: Path, text: str) -> None:
    etc(tmp_path, "os-release", text)
    with pytest.raises(HostLacks, match="this host is not Debian"):
        host_codename(tmp_path)
