"""What the doctor says: one finding a line, and the report they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

__all__ = ["NEEDS", "Finding", "HostReport", "Need", "Topic", "Verdict"]

Verdict = Literal["ok", "note", "warn", "fail"]
Topic = Literal[
    "KVM", "QEMU", "programs", "firmware", "memory", "cgroups", "network", "confinement"
]
Need = Literal[
    "run",
    "kvm",
    "nested",
    "x86_64",
    "aarch64",
    "riscv64",
    "images",
    "build",
    "uefi",
    "secure-boot",
    "hugepages",
    "limits",
    "tap",
    "vhost-net",
    "bridge",
    "vsock",
    "tpm",
    "virtiofs",
    "passt",
]

NEEDS: Mapping[Need, str] = {
    "run": "starting machines",
    "kvm": "guests at the CPU's own speed",
    "nested": "KVM inside guests",
    "x86_64": "x86_64 guests",
    "aarch64": "aarch64 guests",
    "riscv64": "riscv64 guests",
    "images": "making and changing disk images",
    "build": "building a Debian image",
    "uefi": "guests that boot by UEFI",
    "secure-boot": "guests with Secure Boot",
    "hugepages": "guest memory in huge pages",
    "limits": "limiting what each machine uses",
    "tap": "NICs on tap devices",
    "vhost-net": "tap NICs served by the kernel (vhost)",
    "bridge": "NICs that an ordinary user puts on a bridge",
    "vsock": "vsock devices",
    "tpm": "guests with a TPM",
    "virtiofs": "sharing directories by virtiofs",
    "passt": "NICs through passt",
}
"""Everything a host can be asked for, in words that follow "enough for"."""

_WORST_LAST: tuple[Verdict, ...] = get_args(Verdict)


@attrs.frozen(kw_only=True)
class Finding:
    """One line: what was found, what it is enough for and not, and the cure.

    `verdict`: `ok`; `note` for what is only of use to some; `warn` when machines run,
    but not as one would hope; `fail` when a need that was required is among its `lacks`.
    `lacks` names the needs that this stands in the way of.  `cure` is one sentence or
    command, "" when there is nothing to do or another line says it.  `facts` is what
    was found as plain data, sizes in bytes.
    """

    topic: Topic
    name: str
    verdict: Verdict
    found: str
    enough_for: str = ""
    lacks: tuple[Need, ...] = ()
    cure: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def not_enough_for(self) -> str:
        """The needs of `lacks` in words."""
        return ", ".join(NEEDS[need] for need in self.lacks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every key always there."""
        return {**attrs.asdict(self), "lacks": list(self.lacks)}


@attrs.frozen(kw_only=True)
class HostReport:
    """Everything that was found on a host.

    `host`: what it is (`os`, `kernel`, `arch`, `container`, `user`; "" unknown).
    `required`: the needs that were asked for; lacking one of them is a failure.
    """

    host: Mapping[str, str]
    findings: tuple[Finding, ...]
    required: tuple[Need, ...]

    @classmethod
    def of(
        cls, host: Mapping[str, str], findings: Iterable[Finding], required: Iterable[Need]
    ) -> HostReport:
        """The report in which a finding that lacks something required is a failure."""
        wanted = tuple(dict.fromkeys(required))
        judged = (
            attrs.evolve(finding, verdict="fail") if set(finding.lacks) & set(wanted) else finding
            for finding in findings
        )
        return cls(host=host, findings=tuple(judged), required=wanted)

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings."""
        return max((found.verdict for found in self.findings), key=_WORST_LAST.index, default="ok")

    @property
    def ok(self) -> bool:
        """Whether everything required is here."""
        return self.verdict != "fail"

    def can(self, need: Need) -> bool:
        """Whether nothing that was found stands in the way of *need*."""
        return all(need not in finding.lacks for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `verdict`, `host`, `required`, `can` (need → bool), `findings`."""
        return {
            "verdict": self.verdict,
            "host": dict(self.host),
            "required": list(self.required),
            "can": {need: self.can(need) for need in NEEDS},
            "findings": [finding.to_dict() for finding in self.findings],
        }
