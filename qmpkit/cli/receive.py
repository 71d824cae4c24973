"""`qmpkit receive`: machines of other hosts come in by TLS, and go on to the farm's daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import running_daemon
from qmpkit.cli.talk import print_json, talk
from qmpkit.cli.which_farm import which_farm
from qmpkit.errors import Fault, HostLacks, SpecInvalid
from qmpkit.operations.migration.place import MOVES, handshake_done
from qmpkit.operations.migration.tls import control_faults, tls_context
from qmpkit.operations.migration.wire import Wire, WireLost
from qmpkit.spec.network import inet_address

__all__ = ["receive_machines"]

log = logging.getLogger("qmpkit.cli")

_HANDSHAKE = 10.0
_SILENCE = 40.0
"""Seconds; the daemon has less patience."""
_ANSWER = 120.0
_AT_ONCE = 16


@attrs.frozen
class _Front:
    """Where conversations go on, and on what terms."""

    door: Path
    terms: dict[str, Any]
    only: trio.CancelScope | None
    as_json: bool

    async def serve(self, tcp: trio.SocketStream, tls: Path, turns: trio.CapacityLimiter) -> None:
        """One connection; nothing that it does ends the command.  Too many are hung up on."""
        if not turns.available_tokens:
            await trio.aclose_forcefully(tcp)
            return
        async with turns:
            who = tcp.socket.getpeername()[0]
            try:
                context = await trio.to_thread.run_sync(tls_context, tls, "server")
                stream = trio.SSLStream(tcp, context, server_side=True)
                with trio.fail_after(_HANDSHAKE):
                    await handshake_done(stream)
                await self._heard(Wire(stream), who)
            except (WireLost, HostLacks, SpecInvalid, trio.TooSlowError, OSError) as error:
                talk.warn(f"{who}: {error or 'it took too long'}")
            finally:
                await trio.aclose_forcefully(tcp)

    async def _heard(self, peer: Wire, who: str) -> None:
        async with await trio.open_unix_socket(str(self.door)) as inner:
            daemon = Wire(inner)
            with trio.fail_after(_ANSWER):
                await daemon.send({"terms": self.terms})
                await daemon.receive()
            name = ""
            while True:
                with trio.fail_after(_SILENCE):
                    asked = await peer.receive()
                name = name or _name_in(asked)
                with trio.fail_after(_ANSWER):
                    await daemon.send(asked)
                    reply = await daemon.receive()
                try:
                    with trio.fail_after(_SILENCE):
                        await peer.send(reply)
                finally:
                    if _has_it_come(asked, reply):
                        self._has_come(name or "a machine", who)
                if _is_over(asked, reply):
                    await peer.close()
                    return

    def _has_come(self, name: str, who: str) -> None:
        if self.as_json:
            print_json({"machine": name, "from": who}, compact=True)
        else:
            talk.say(f"{name} has come from {who}")
        if self.only is not None:
            self.only.deadline = trio.current_time() + 1.0  # its source hears of it first


def _has_it_come(asked: dict[str, Any], reply: dict[str, Any]) -> bool:
    """It was run, with all of its memory, or by now all of that is here (postcopy)."""
    what, ok = asked.get("ask"), reply.get("ok")
    if what == "now" and isinstance(ok, dict):
        return bool(ok.get("over")) and ok.get("status") == "completed"
    return what == "run" and ok == {}


def _is_over(asked: dict[str, Any], reply: dict[str, Any]) -> bool:
    what, ok = asked.get("ask"), reply.get("ok")
    if isinstance(ok, dict) and (ok.get("over") or ok.get("outcome", "coming") != "coming"):
        return True
    return what in ("run", "discard", "settle") or (what == "offer" and "error" in reply)


def _name_in(asked: dict[str, Any]) -> str:
    offer = asked.get("offer")
    spec = offer.get("spec") if isinstance(offer, dict) else None
    return str(spec.get("name", "vm"))[:80] if isinstance(spec, dict) else ""


async def receive_machines(
    listen: str,
    tls: Path,
    allow: Sequence[Path],
    memory_port: int,
    farm: str | None,
    *,
    once: bool,
    as_json: bool,
) -> int:
    """`receive`."""
    address = inet_address(listen)
    faults = [] if address else [Fault("--listen", f"{listen!r} is not ADDRESS:PORT")]
    if not 0 <= memory_port <= 65535:
        faults.append(Fault("--memory-port", f"{memory_port} is no port"))
    elif address and memory_port and memory_port == address[1]:
        faults.append(Fault("--memory-port", f"{memory_port} is that of --listen", "another one"))
    faults += await trio.to_thread.run_sync(lambda: [*_missing(allow), *control_faults(tls)])
    if faults or address is None:
        raise SpecInvalid(faults, "receive")
    await trio.to_thread.run_sync(tls_context, tls, "server")  # what is wrong with it, at once
    which = which_farm(farm)
    host = listen.rpartition(":")[0]
    terms = {"address": f"{host}:{memory_port}", "tls": str(tls), "allow": [*map(str, allow)]}
    async with AsyncExitStack() as stack:
        listeners = await _listening(address, listen)
        for listener in listeners:
            await stack.enter_async_context(listener)
        daemon = await trio.to_thread.run_sync(running_daemon, which)
        door = Path((await trio.to_thread.run_sync(daemon.get))["runtime_dir"]) / MOVES
        scope = stack.enter_context(trio.CancelScope())
        front = _Front(door, terms, scope if once else None, as_json)
        turns = trio.CapacityLimiter(_AT_ONCE)
        serve = partial(front.serve, tls=tls, turns=turns)
        port = listeners[0].socket.getsockname()[1]
        talk.note(f"farm {which!r} takes machines in at tls://{host}:{port}, until Ctrl-C")
        try:
            await trio.serve_listeners(serve, listeners)
        except BaseExceptionGroup as group:
            raise_collapsed(group)
    return Exit.OK


def _missing(allow: Sequence[Path]) -> Iterator[Fault]:
    for folder in allow:
        if not folder.is_dir():
            yield Fault("--allow", f"{str(folder)!r} is no directory")


async def _listening(address: tuple[str, int], listen: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(address[1], host=address[0])
    except OSError as error:
        what = f"cannot listen at {listen}: {error.strerror or error}"
        raise HostLacks(what, "an address of this host, and a free port") from error
