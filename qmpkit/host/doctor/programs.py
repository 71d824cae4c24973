"""qemu-img and the other programs that stand beside QEMU."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import trio

from qmpkit.host.doctor.finding import Finding, Need
from qmpkit.host.doctor.place import Host
from qmpkit.host.tools import BUILD_PROGRAMS, BUILD_WITHOUT_ROOT

__all__ = ["builds", "programs"]


@attrs.frozen
class Tool:
    """A program, Debian's package with it, and what it is for."""

    name: str
    package: str
    use: str
    need: Need | None = None
    wanted: bool = False
    has_version: bool = True


_TOOLS = (
    Tool("qemu-img", "qemu-utils", "making and changing disk images", "images", wanted=True),
    Tool("qemu-nbd", "qemu-utils", "serving an image to other programs"),
    Tool("qemu-io", "qemu-utils", "reading and writing inside an image by hand"),
    Tool("qemu-storage-daemon", "qemu-system-common", "serving disks without a guest"),
    Tool("virtiofsd", "virtiofsd", "sharing directories by virtiofs", "virtiofs"),
    Tool("swtpm", "swtpm", "guests with a TPM", "tpm"),
    Tool("passt", "passt", "NICs through passt", "passt"),
)


async def programs(host: Host) -> list[Finding]:
    """A line for each program; those that are there are asked their version."""
    found: dict[str, Finding] = {}

    async def look(tool: Tool) -> None:
        found[tool.name] = await _look(host, tool)

    async with trio.open_nursery() as nursery:
        for tool in _TOOLS:
            nursery.start_soon(look, tool)
    return [found[tool.name] for tool in _TOOLS]


async def _look(host: Host, tool: Tool) -> Finding:
    path = await trio.to_thread.run_sync(host.program, tool.name)
    lacks = () if tool.need is None else (tool.need,)
    if path is None:
        return Finding(
            topic="programs",
            name=tool.name,
            verdict="warn" if tool.wanted else "note",
            found="not installed" + ("" if tool.need else f"; it is for {tool.use}"),
            lacks=lacks,
            cure=host.install(_package(host, tool)),
        )
    shown = host.shown(path)
    version = await host.version_of(path)
    if version is None:
        return Finding(
            topic="programs",
            name=tool.name,
            verdict="warn",
            found=f"{shown} does not run: try {shown} --version",
            lacks=lacks,
            cure=host.install(_package(host, tool), again=True),
            facts={"path": shown},
        )
    return Finding(
        topic="programs",
        name=tool.name,
        verdict="ok",
        found=", ".join(part for part in (_number(version), shown) if part),
        enough_for=tool.use,
        facts={"path": shown, "version": version},
    )


def _package(host: Host, tool: Tool) -> str:
    # Until Debian 12 virtiofsd came with QEMU.
    with_qemu = tool.name == "virtiofsd" and host.release("VERSION_ID") == "12"
    return "qemu-system-common" if with_qemu else tool.package


def _number(version: str) -> str:
    """The version's number in the line that a program prints, else nothing."""
    words = (word.strip(",:()") for word in version.split())
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def builds(host: Host) -> Iterator[Finding]:
    """Whether `qmpkit image build debian` finds what it calls."""
    wanted = {**BUILD_PROGRAMS, **({} if host.user.uid == 0 else BUILD_WITHOUT_ROOT)}
    missing = [name for name in wanted if host.program(name) is None]
    packages = sorted({wanted[name] for name in missing})
    yield Finding(
        topic="programs",
        name="image build",
        verdict="note" if missing else "ok",
        found=f"not installed: {', '.join(missing)}"
        if missing
        else f"all {len(wanted)} programs are here",
        enough_for="" if missing else "building a Debian image",
        lacks=("build",) if missing else (),
        cure=host.install(*packages) if missing else "",
        facts={"missing": missing},
    )
