"""`qmpkit doctor`: the report on this host, for people and as JSON."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.safe import one_line
from qmpkit.cli.talk import noted, print_json, stdout_console
from qmpkit.host.doctor import NEEDS, Finding, HostReport, Need, Verdict, examine_host

__all__ = ["show_report"]

# Told apart without colours too.
_SIGNS: dict[Verdict, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warn": ("warn", "bold yellow"),
    "fail": ("FAIL", "bold red"),
}
_INDENT, _GAP = 8, 2
_LEAST_TO_READ = 32  # columns, below which a finding is a tower of words


async def show_report(require: Sequence[str], *, as_json: bool) -> int:
    """Examine this host and print what was found; the exit status."""
    required = _needs_of(require)
    async with noted("Asking each QEMU what it can do; the answers are kept …"):
        report = await examine_host(required)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, stdout_console())
    return Exit.OK if report.ok else Exit.HOST


def _needs_of(words: Sequence[str]) -> tuple[Need, ...]:
    names = [name.strip() for word in words or ("run",) for name in word.split(",")]
    for name in names:
        if name not in NEEDS:
            close = difflib.get_close_matches(name, NEEDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(NEEDS)}"
            what = f"there is no {name!r}" if name else "a name is missing"
            raise Refusal(f"--require: {what} ({hint})")
    return tuple(cast(Need, name) for name in names)


def _print(report: HostReport, console: Console) -> None:
    console.print(Text(one_line(_host(report)), style="bold"), soft_wrap=True, highlight=False)
    for topic, group in groupby(report.findings, key=lambda finding: finding.topic):
        findings = list(group)
        width = max(len(finding.name) for finding in findings)
        console.print()
        console.print(Text(topic[0].upper() + topic[1:], style="bold"))
        for finding in findings:
            console.print(_told(finding, width, console.width), highlight=False)
            if finding.cure:
                cure = Text.assemble(" " * _INDENT, ("cure: ", "bold"), one_line(finding.cure))
                # Cures get copied, so only the terminal may break their lines.
                console.print(cure, soft_wrap=True, highlight=False)
    console.print()
    for line in _conclusion(report):
        console.print(line, highlight=False)


def _host(report: HostReport) -> str:
    host = report.host
    parts = [host["os"], f"Linux {host['kernel']}" if host["kernel"] else "", host["arch"]]
    parts += [f"in {host['container']}" if host["container"] else "", f"as {host['user']}"]
    return ", ".join(part for part in parts if part)


def _told(finding: Finding, width: int, room: int) -> RenderableType:
    """The finding in columns; on a narrow terminal what was found is below its name."""
    sign, style = _SIGNS[finding.verdict]
    what = Text(one_line(finding.found))
    if use := _use(finding):
        what.append(f"; {use}", style="dim")
    start = Text.assemble((f"  {sign}".ljust(_INDENT), style), finding.name.ljust(width))
    if room - _INDENT - width - _GAP < _LEAST_TO_READ:
        return Group(start, Padding(what, (0, 0, 0, _INDENT)))
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(width=_INDENT + width)
    grid.add_column(overflow="fold")
    grid.add_row(start, what)
    return grid


def _use(finding: Finding) -> str:
    parts = [f"enough for {finding.enough_for}"] if finding.enough_for else []
    if finding.lacks:
        parts.append(f"not {'' if parts else 'enough '}for {finding.not_enough_for}")
    return ", ".join(parts)


def _conclusion(report: HostReport) -> Iterator[Text]:
    able = [need for need in NEEDS if report.can(need)]
    unable = [need for need in NEEDS if not report.can(need)]
    yield Text.assemble(("Enough for: ", "bold"), ", ".join(able) or "nothing")
    yield Text.assemble(("Not for: ", "bold"), ", ".join(unable) or "nothing that is known")
    required = ", ".join(report.required)
    lacking = [need for need in report.required if need in unable]
    if lacking:
        words = ", ".join(f"{need} ({NEEDS[need]})" for need in lacking)
        yield Text.assemble(("FAIL", "bold red"), f": required and lacking: {words}")
    else:
        yield Text.assemble(("ok", "green"), f": all that is required is here ({required})")
