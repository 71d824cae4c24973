"""Debian's package sources as this host has them, bent to another release.

The project names no mirror: whoever runs it has chosen one, and its signing
keys, in /etc/apt.  Pure but for `host_sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from qmpkit.errors import HostLacks

__all__ = [
    "Source",
    "for_release",
    "host_codename",
    "host_sources",
    "parse_deb822",
    "parse_list",
    "render",
]

# What follows the code name in the suites of Debian's own archives.
_POCKETS = ("", "-updates", "-security", "-backports")
_STABLE_NAMES = ("stable", "testing", "oldstable")


@attrs.frozen
class Source:
    """One archive and one suite of it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    options: tuple[tuple[str, str], ...] = ()


def host_sources(root: Path = Path("/")) -> list[Source]:
    """Every enabled binary source configured below *root*/etc/apt."""
    folder = root / "etc/apt/sources.list.d"
    files = [root / "etc/apt/sources.list"]
    files += sorted(folder.iterdir()) if folder.is_dir() else []
    sources: list[Source] = []
    for file in files:
        if file.suffix == ".list" and file.is_file():
            sources += parse_list(file.read_text())
        elif file.suffix == ".sources" and file.is_file():
            sources += parse_deb822(file.read_text())
    return sources


def host_codename(root: Path = Path("/")) -> str:
    """This host's Debian code name; raises HostLacks on anything but Debian."""
    release = root / "etc/os-release"
    text = release.read_text() if release.is_file() else ""
    values: dict[str, str] = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if values.get("ID") != "debian" or not values.get("VERSION_CODENAME"):
        raise HostLacks(
            "the test guests are built from Debian's packages, and this host is not Debian",
            "run on Debian 12 or newer",
        )
    return values["VERSION_CODENAME"]


def parse_list(text: str) -> list[Source]:
    """The one-line form: `deb [signed-by=…] URI suite component…`."""
    pattern = re.compile(r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#\n]+)", re.MULTILINE)
    sources = []
    for options, uri, suite, components in pattern.findall(text):
        fields = dict(word.split("=", 1) for word in options.split() if "=" in word)
        signed_by = fields.pop("signed-by", "")
        sources.append(Source(uri, suite, tuple(components.split()), signed_by, _kept(fields)))
    return sources


def parse_deb822(text: str) -> list[Source]:
    """The stanza form of `.sources` files."""
    sources = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                signed_by = fields.get("signed-by", "")
                sources.append(Source(uri, suite, components, signed_by, _kept(fields)))
    return sources


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and key:
            fields[key] += "\n" + line  # a key written out in the file keeps its lines
        elif ":" in line:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            fields[key] = value.strip()
    return fields


def _kept(fields: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The options that decide whether an old or local mirror is accepted."""
    names = ("trusted", "check-valid-until")
    return tuple((name, fields[name]) for name in names if name in fields)


def for_release(
    sources: Iterable[Source], host: str, release: str, *, backports: bool = False
) -> list[Source]:
    """Those of *sources* that are Debian's for *host*, with *release* in its place.

    Raises HostLacks when none of them has Debian's main component.
    """
    chosen: dict[tuple[str, str], Source] = {}
    for source in sources:
        pocket = _pocket(source, host)
        if pocket is None or pocket == "-backports":
            continue
        pockets = [pocket, "-backports"] if backports and not pocket else [pocket]
        for suffix in pockets:
            suite = release + suffix
            chosen.setdefault(
                (source.uri, suite), attrs.evolve(source, suite=suite, components=("main",))
            )
    if not chosen:
        raise HostLacks(
            f"no source of Debian {host} with component main in /etc/apt",
            "add Debian's archive to /etc/apt/sources.list.d",
        )
    return list(chosen.values())


def _pocket(source: Source, host: str) -> str | None:
    """The suite's suffix when *source* is Debian's own archive for *host*, else None."""
    # Others use Debian's suite names too, but they sign with keys of their own.
    foreign = source.signed_by and "debian-archive" not in source.signed_by
    if "main" not in source.components or (foreign and "PGP" not in source.signed_by):
        return None
    for name in (host, *_STABLE_NAMES):
        if source.suite.startswith(name) and source.suite[len(name) :] in _POCKETS:
            return source.suite[len(name) :]
    return None


def render(sources: Iterable[Source]) -> str:
    """The text of a `.sources` file."""
    stanzas = []
    for source in sources:
        lines = [
            "Types: deb",
            f"URIs: {source.uri}",
            f"Suites: {source.suite}",
            f"Components: {' '.join(source.components)}",
        ]
        if source.signed_by:
            lines.append(f"Signed-By: {source.signed_by}")
        lines += [f"{name.title()}: {value}" for name, value in source.options]
        stanzas.append("\n".join(lines))
    return "\n\n".join(stanzas) + "\n"
