"""Everything about a host, asked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from qmpkit.host.doctor.cgroups import cgroups
from qmpkit.host.doctor.confinement import confinement
from qmpkit.host.doctor.cpu import cpu_and_kvm
from qmpkit.host.doctor.finding import Finding, HostReport, Need
from qmpkit.host.doctor.firmware import firmware
from qmpkit.host.doctor.memory import memory
from qmpkit.host.doctor.network import network
from qmpkit.host.doctor.place import Host
from qmpkit.host.doctor.programs import builds, programs
from qmpkit.host.doctor.qemus import Answer, ask_all, qemus
from qmpkit.host.kvm import probe_kvm

__all__ = ["examine_host"]


async def examine_host(
    require: Iterable[Need] = ("run",), *, host: Host | None = None
) -> HostReport:
    """Find out what this host is enough for, and the cure for what it is not.

    *require* names what must be here (see `NEEDS`): a finding that stands in its way has
    the verdict `fail`, and the report is not `ok`.  Changes nothing and needs no root.

    Takes 0.1 s when every QEMU on PATH has been asked before, else about 0.1 s for each
    in turn; one that does not answer is given up after 20 s and is a finding.  Raises
    nothing on purpose.  Cancelled, no process is left.
    """
    place = host or Host()
    answers: list[Answer] = []
    tools: list[Finding] = []

    async def ask_qemus() -> None:
        answers.extend(await ask_all(place))

    async def ask_tools() -> None:
        tools.extend(await programs(place))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_qemus)
        nursery.start_soon(ask_tools)
    findings = await trio.to_thread.run_sync(_findings, place, answers, tools)
    return HostReport.of(place.described(), findings, require)


def _findings(host: Host, answers: Sequence[Answer], tools: Sequence[Finding]) -> list[Finding]:
    kvm = probe_kvm(
        host.root, arch=host.arch, opener=host.try_kvm, user=host.user, owner=host.owner_of
    )
    archs = {answer.known.arch for answer in answers if answer.known is not None}
    return [
        *cpu_and_kvm(host, kvm),
        *qemus(host, kvm, answers),
        *tools,
        *builds(host),
        *firmware(host, archs),
        *memory(host),
        *cgroups(host),
        *network(host),
        *confinement(host),
    ]
