"""Another host: a network of its own with a cable to this one, and `qmpkit receive` there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trustme

from qmpkit.cli.daemon import find_daemon
from tests.live.commands import COMMAND, said

__all__ = ["FAR", "OtherHost", "certificates", "machines_there", "other_host", "receiver"]

FAR = "far"


@attrs.frozen
class OtherHost:
    """The network namespace `name`; from here it has `address`, and this host is at `ours`."""

    name: str
    address: str
    ours: str

    def inside(self, *words: str) -> list[str]:
        """A command line there."""
        return ["ip", "netns", "exec", self.name, *words]

    def cable(self, state: str) -> None:
        """Pull the cable ("down"), or put it in again ("up").

        At its far end: were this one down, packets would take another way, to strangers.
        """
        subprocess.run(self.inside("ip", "link", "set", "eth0", state), check=True)


@contextmanager
def other_host() -> Iterator[OtherHost]:
    """Make one; skips where this user may not."""
    number = os.getpid() % 25_000  # a network of its own beside other tests
    net = f"10.{100 + number // 250}.{number % 250}"
    host = OtherHost(f"qk{os.getpid()}", f"{net}.2", f"{net}.1")
    made = subprocess.run(
        ["ip", "netns", "add", host.name], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"this host cannot make network namespaces: {made.stderr.strip()}")
    try:
        _ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("addr", "add", f"{host.ours}/24", "dev", host.name)
        _ip("link", "set", host.name, "up")
        for words in (
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            subprocess.run(host.inside("ip", *words), check=True)
        subprocess.run(host.inside("ip", "link", "set", "lo", "up"), check=True)
        yield host
    finally:
        subprocess.run(["ip", "link", "delete", host.name], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", host.name], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def certificates(
    folder: Path, ca: trustme.CA, name: str, *, trusts: trustme.CA | None = None, age: int = 0
) -> Path:
    """A folder for a host called *name*, as QEMU has it; *age*: days since they have expired."""
    folder.mkdir(mode=0o700)
    (trusts or ca).cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    until = datetime.now(UTC) - timedelta(days=age) if age else None
    for side in ("server", "client"):
        issued = ca.issue_cert(name, not_after=until)
        issued.private_key_pem.write_to_path(str(folder / f"{side}-key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{side}-cert.pem"))
    return folder


@asynccontextmanager
async def receiver(
    host: OtherHost, tls: Path, *allow: Path, words: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """`qmpkit receive` of the farm FAR over there; where it is, as `migrate` takes it.

    The daemon that it starts, and what that keeps, end with the test's `places`.
    """
    argv = [*COMMAND, "receive", "--farm", FAR, "--listen", f"{host.address}:4455"]
    argv += ["--tls", str(tls), *(f"--allow={folder}" for folder in allow), *words]
    process = await trio.lowlevel.open_process(
        host.inside(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        await said(process, "takes machines in at")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drained, process)
            yield f"tls://{host.address}:4455"
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(10, shield=True):
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def machines_there() -> list[str]:
    """Those of FAR, and what they do: by the socket of its daemon, as commands do."""
    daemon = await trio.to_thread.run_sync(find_daemon, FAR)
    found = await trio.to_thread.run_sync(daemon.get, "machines")
    return [f"{it['name']} {it['state']}" for it in found["machines"]]


async def _drained(process: trio.Process) -> None:
    assert process.stderr is not None
    async for _ in process.stderr:
        pass
