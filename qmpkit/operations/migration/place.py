"""Where a machine moves to that another supervisor is to keep, and the way to ask for it there."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.migration.options import MigrationOptions, Way
from qmpkit.operations.migration.tls import control_faults, tls_context
from qmpkit.operations.migration.wire import WireLost
from qmpkit.process.roots import runtime_of
from qmpkit.spec.names import machine_name_problem

__all__ = ["MOVES", "MovePlace", "connected", "handshake_done", "move_place"]

MOVES = Path(".moves") / "door"
"""Where in its runtime directory a farm's daemon listens for machines that come."""

_CONNECT = 10.0
"""Seconds that connecting may take, and TLS to find out who is who."""

_CURE = (
    ". Cure: certificates of one authority on both sides, the server's for the name that is dialled"
)

_FORMS = "a farm of this host, unix:PATH or tls://HOST:PORT"


@attrs.frozen(kw_only=True)
class MovePlace:
    """Another supervisor: the daemon of `farm`, who listens at `path`, or at `host` and `port`.

    `tls`: for another host, the folder of certificates that QEMU takes too.
    """

    farm: str = ""
    path: Path | None = None
    host: str = ""
    port: int = 0
    tls: Path | None = None

    def __str__(self) -> str:
        if self.host:
            return f"tls://{self.inet}:{self.port}"
        return self.farm or f"unix:{self.path}"

    @property
    def inet(self) -> str:
        """The host as it stands in addresses."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def options(self, given: MigrationOptions) -> MigrationOptions:
        """*given*, by the way that leads there; SpecInvalid when another one is wanted."""
        way: Way = "tcp" if self.host else "unix"
        address = f"{self.inet}:0" if self.host else given.address
        if given.way not in ("fd", way):
            message = f"{given.way!r} does not lead to {self}"
            fault = Fault("way", message, f'way="{way}" (--way {way})')
            raise SpecInvalid([fault], "how to migrate")
        tls = self.tls if self.host else None
        return attrs.evolve(given, way=way, address=address, tls=tls)


def move_place(text: str, tls: Path | None = None) -> MovePlace:
    """The place that *text* names; SpecInvalid with all that is wrong with it.  Blocking."""
    faults: list[Fault] = []
    place = MovePlace(tls=None if tls is None else tls.absolute())
    if text.startswith("unix:"):
        place = attrs.evolve(place, path=Path(text.removeprefix("unix:")).absolute())
    elif "://" in text:
        place = _of_url(text, place)
        if not (place.host and place.port):
            faults.append(Fault("to", f"{text!r} is none", _FORMS))
        elif place.tls is None:
            message = "nothing is sent in clear to other hosts"
            faults.append(Fault("tls", message, "a folder of certificates (--tls)"))
        else:
            faults += control_faults(place.tls)
    elif problem := machine_name_problem(text):
        faults.append(Fault("to", problem.replace("a machine", "a farm"), _FORMS))
    else:
        place = attrs.evolve(place, farm=text)
    if tls is not None and not place.host and not faults:
        faults.append(Fault("tls", f"{text!r} needs none: it is on this host"))
    if faults:
        raise SpecInvalid(faults, "where to migrate")
    return place


def _of_url(text: str, place: MovePlace) -> MovePlace:
    try:
        url = urlsplit(text)
        if url.scheme == "tls" and not url.path and not url.query and url.username is None:
            return attrs.evolve(place, host=url.hostname or "", port=url.port or 0)
    except ValueError:
        pass
    return place


async def connected(place: MovePlace) -> trio.abc.Stream:
    """A stream to who waits there; WireLost when nobody does, or TLS finds another than it should.

    Cancelled, nothing is left.
    """
    try:
        with trio.fail_after(_CONNECT):
            if place.host:
                return await _by_tls(place)
            return await trio.open_unix_socket(str(await trio.to_thread.run_sync(_path, place)))
    except trio.TooSlowError:
        raise WireLost(f"{place} does not answer within {_CONNECT:g} s") from None
    except OSError as error:
        raise WireLost(f"nobody waits at {place}: {error.strerror or error}") from error
    except RuntimeError as error:  # trio's own for a path that is too long
        raise WireLost(f"nobody waits at {place}: {error}") from error


def _path(place: MovePlace) -> Path:
    if place.path is not None:
        return place.path
    runtime = runtime_of(place.farm)
    if runtime is None:
        raise WireLost(
            f"farm {place.farm!r} has no daemon that runs. Cure: `qmpkit serve --farm "
            f"{place.farm} --detach`"
        )
    return runtime / MOVES


async def _by_tls(place: MovePlace) -> trio.abc.Stream:
    assert place.tls is not None, "which `move_place` has made sure"
    context = await trio.to_thread.run_sync(tls_context, place.tls, "client")
    tcp = await trio.open_tcp_stream(place.host, place.port)
    stream = trio.SSLStream(tcp, context, server_hostname=place.host)
    await handshake_done(stream)
    return stream


async def handshake_done(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Find out who is who, or close it and say why not (WireLost)."""
    try:
        await stream.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            said = error.__cause__
            why = said.reason if isinstance(said, ssl.SSLError) else said
            detail = getattr(said, "verify_message", "")
            more = f": {detail}" if detail else ""
            raise WireLost(f"TLS: {why or 'it was broken off'}{more}{_CURE}") from error
        raise
