"""`qmpkit doctor`: the report on this host, for people and as JSON."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmpkit.cli.exits import Exit, Refusal
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
_INDENT = 8


async def show_report(require: Sequence[str], *, as_json: bool) -> int:
    """Examine this host and print what was found; the exit status."""
    required = _needs_of(require) or ("run",)
    async with noted("Asking each QEMU what it can do; the answers are kept …"):
        report = await examine_host(required)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, stdout_console())
    return Exit.OK if report.ok else Exit.HOST


def _needs_of(words: Iterable[str]) -> tuple[Need, ...]:
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    for name in names:
        if name not in NEEDS:
            close = difflib.get_close_matches(name, NEEDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(NEEDS)}"
            raise Refusal(f"--require: there is no {name!r} ({hint})")
    return tuple(cast(Need, name) for name in names)


def _print(report: HostReport, console: Console) -> None:
    console.print(Text(_host(report), style="bold"), soft_wrap=True, highlight=False)
    for topic, group in groupby(report.findings, key=lambda finding: finding.topic):
        findings = list(group)
        width = max(len(finding.name) for finding in findings)
        console.print()
        console.print(Text(topic[0].upper() + topic[1:], style="bold"))
        for finding in findings:
            console.print(_line(finding, width), highlight=False)
            if finding.cure:
                cure = Text.assemble(" " * _INDENT, ("cure: ", "bold"), finding.cure)
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


def _line(finding: Finding, width: int) -> Table:
    sign, style = _SIGNS[finding.verdict]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=2 + max(len(sign) for sign, _ in _SIGNS.values()))
    grid.add_column(width=width)
    grid.add_column(overflow="fold")
    what = Text(finding.found)
    if use := _use(finding):
        what.append(f"; {use}", style="dim")
    grid.add_row(Text(f"  {sign}", style=style), Text(finding.name), what)
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
