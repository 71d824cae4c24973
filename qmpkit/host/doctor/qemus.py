"""The QEMU binaries, and which accelerator a machine of this host's architecture gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import attrs
import trio

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.host.accel import decide
from qmpkit.host.binary import package_of
from qmpkit.host.capabilities import Capabilities, Stamp
from qmpkit.host.doctor.finding import NEEDS, Finding, Need
from qmpkit.host.doctor.place import Host
from qmpkit.host.doctor.words import listing, plural
from qmpkit.host.kvm import KvmFacts

__all__ = ["Answer", "ask_all", "qemus"]

_PREFIX = "qemu-system-"
_AUTO = 'accel = "auto"'
_SUPPORTED: tuple[Need, ...] = ("x86_64", "aarch64", "riscv64")
# Each asks with a process of its own; more than this only wait for processors.
_AT_ONCE = 4
_ANSWER_WITHIN = 20.0  # seconds: for a wedged binary on a busy host


@attrs.frozen
class Answer:
    """One binary, by the path that its host knows, and what it can do or why it did not say.

    `broken`: the reason is its own, not that this host cannot start a program for us.
    """

    path: PurePosixPath
    known: Capabilities | None
    problem: str = ""
    broken: bool = True

    @property
    def name(self) -> str:
        """What follows `qemu-system-`."""
        return self.path.name.removeprefix(_PREFIX)


async def ask_all(host: Host) -> list[Answer]:
    """Ask every QEMU on the search path, a few at a time; none can hold this up for long."""
    answers: list[Answer] = []
    turns = trio.CapacityLimiter(_AT_ONCE)

    async def ask(path: Path) -> None:
        async with turns:
            answers.append(await _answer(host, path))

    async with trio.open_nursery() as nursery:
        for path in await trio.to_thread.run_sync(host.programs, _PREFIX):
            nursery.start_soon(ask, path)
    return sorted(answers, key=lambda answer: answer.name)


async def _answer(host: Host, path: Path) -> Answer:
    shown = PurePosixPath(host.shown(path))
    problem = f"does not answer within {_ANSWER_WITHIN:g} seconds"
    with trio.move_on_after(_ANSWER_WITHIN):
        try:
            stamp = await trio.to_thread.run_sync(Stamp.of, path)
            return Answer(shown, await host.ask(stamp))
        except HostLacks as lacking:
            return Answer(shown, None, lacking.what, broken=False)
        except (QmpkitError, OSError) as error:
            problem = _brief(error)
    return Answer(shown, None, problem)


def _brief(error: Exception) -> str:
    said = getattr(error, "stderr_tail", "") or str(error)
    return next((line for line in reversed(said.strip().splitlines()) if line), repr(error))


def qemus(host: Host, kvm: KvmFacts, answers: Sequence[Answer]) -> Iterator[Finding]:
    """A line for each architecture that machines can have, one for all others, and the choice."""
    by_name = {answer.name: answer for answer in answers}
    nothing_runs = not any(_serves(by_name.get(arch)) for arch in _SUPPORTED)
    first = host.arch if host.arch in _SUPPORTED else _SUPPORTED[0]
    for arch in sorted(_SUPPORTED, key=lambda arch: arch != first):
        lacks: tuple[Need, ...] = (arch,)
        if arch == host.arch:
            lacks = (*lacks, "kvm")
        if arch == first and nothing_runs:
            lacks = ("run", *lacks)
        yield _supported(host, by_name.get(arch), arch, lacks, native=arch == host.arch)
    yield from _others(host, [answer for answer in answers if answer.name not in _SUPPORTED])
    native = by_name.get(host.arch)
    if native is not None and native.known is not None:
        yield _choice(host, kvm, native.known)


def _serves(answer: Answer | None) -> bool:
    return answer is not None and answer.known is not None and answer.known.sandbox


def _supported(
    host: Host, answer: Answer | None, arch: Need, lacks: tuple[Need, ...], *, native: bool
) -> Finding:
    if answer is None:
        return Finding(
            topic="QEMU",
            name=arch,
            verdict="warn" if native or "run" in lacks else "note",
            found=f"no {_PREFIX}{arch} on PATH",
            lacks=lacks,
            cure=host.install(package_of(arch)),
        )
    if answer.known is None:
        return _broken(host, answer, lacks)
    if not answer.known.sandbox:
        install = host.install(package_of(arch))
        return Finding(
            topic="QEMU",
            name=arch,
            verdict="warn",
            found=f"{_described(answer)}, built without -sandbox, which machines have by default",
            enough_for=f"{arch} guests with sandbox = false",
            lacks=lacks,
            cure=f"sandbox = false in the profile, or a QEMU with seccomp: {install}",
            facts=_facts(answer),
        )
    return Finding(
        topic="QEMU",
        name=arch,
        verdict="ok",
        found=_described(answer),
        enough_for=f"{arch} guests",
        facts=_facts(answer),
    )


def _broken(host: Host, answer: Answer, lacks: tuple[Need, ...] = ()) -> Finding:
    return Finding(
        topic="QEMU",
        name=answer.name,
        verdict="warn" if lacks else "note",
        found=f"{answer.path} {'is broken' if answer.broken else 'is not asked'}: {answer.problem}",
        lacks=lacks,
        cure=host.install(package_of(answer.name), again=True) if answer.broken else "",
        facts=_facts(answer),
    )


def _described(answer: Answer) -> str:
    known = answer.known
    assert known is not None
    accelerators = " and ".join(name.upper() for name in known.accelerators) or "no accelerator"
    return f"{_version(known)} with {accelerators}, {answer.path}"


def _version(known: Capabilities) -> str:
    return ".".join(str(part) for part in known.version)


def _facts(answer: Answer) -> dict[str, object]:
    known = answer.known
    if known is None:
        return {"path": str(answer.path), "problem": answer.problem}
    return {
        "path": str(answer.path),
        "arch": known.arch,
        "version": list(known.version),
        "package": known.package,
        "accelerators": list(known.accelerators),
        "machines": len(known.machines),
        "sandbox": known.sandbox,
    }


def _others(host: Host, answers: Iterable[Answer]) -> Iterator[Finding]:
    """The architectures that qmpkit has no machines for, together when they are alike."""
    alike: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.known is None:
            yield _broken(host, answer)
        else:
            alike.setdefault(_version(answer.known), []).append(answer)
    for version, group in alike.items():
        yield Finding(
            topic="QEMU",
            name=plural(len(group), "other"),
            verdict="ok",
            found=f"{version}: {listing([answer.name for answer in group], most=30)}",
            enough_for="programs that start QEMU themselves",
            facts={"binaries": [_facts(answer) for answer in group]},
        )


def _choice(host: Host, kvm: KvmFacts, known: Capabilities) -> Finding:
    """What `accel = "auto"` comes to, by the same decision that a start takes."""
    accelerators = known.accelerators
    try:
        chosen = decide(
            "auto", kvm, guest_arch=host.arch, host_arch=host.arch, accelerators=accelerators
        )
    except HostLacks as lacking:
        return Finding(
            topic="QEMU",
            name=_AUTO,
            verdict="warn",
            found=lacking.what,
            lacks=("kvm", "run"),
            cure=lacking.cure,
        )
    if chosen.accel == "kvm":
        return Finding(
            topic="QEMU",
            name=_AUTO,
            verdict="ok",
            found="takes KVM",
            enough_for=f"{host.arch} {NEEDS['kvm']}",
            facts={"accel": "kvm"},
        )
    built_in = "kvm" in accelerators
    return Finding(
        topic="QEMU",
        name=_AUTO,
        verdict="warn",
        found="takes TCG, which emulates the CPU"
        + ("" if built_in else ": this QEMU was built without KVM"),
        enough_for=f"{host.arch} guests, many times slower",
        lacks=("kvm",),
        cure="" if built_in else host.install(package_of(host.arch)),
        facts={"accel": "tcg"},
    )
