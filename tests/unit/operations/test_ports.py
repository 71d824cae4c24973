"""Changing forwarded ports while a guest runs: what is there stays, what cannot be had is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import HostLacks
from qmpkit.operations.forwards import Forwarded
from qmpkit.operations.ports import change_forwards, unmatched
from qmpkit.spec.network import Forward


class Usernet:
    """A monitor that knows the commands about forwards; *taken* are ports it cannot have."""

    def __init__(self, *taken: int) -> None:
        self.ports = {("tcp", "127.0.0.1", 8080): 80}
        self.said: list[str] = []
        self.taken = taken
        self.free = 40000

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any:
        assert command == "human-monitor-command"
        assert arguments is not None
        word, _, rest = arguments["command-line"].partition(" ")
        if word == "info":
            rows = [
                f"  TCP[HOST_FORWARD]  11  {address} {port}  10.0.2.15 {guest}  0 0"
                for (_, address, port), guest in self.ports.items()
            ]
            return "\r\n".join(["Hub -1 (qk-nic0):", *rows])
        self.said.append(arguments["command-line"])
        netdev, end = rest.split(" ")
        assert netdev == "qk-nic0"
        if word == "hostfwd_remove":
            proto, address, port = end.split(":")
            del self.ports[(proto, address, int(port))]
            return f"host forwarding rule for {end} removed\r\n"
        host, _, guest = end.partition("-")
        proto, address, port = host.split(":")
        if int(port) in self.taken:
            return f"could not set up host forwarding rule '{end}'\r\n"
        self.free += 1
        self.ports[(proto, address, int(port) or self.free)] = int(guest.rpartition(":")[2])
        return ""


async def test_what_is_wanted_and_nothing_else() -> None:
    monitor = Usernet()
    await change_forwards(monitor, "a", "nic0", [Forward(0, 80), Forward(2222, 22)])  # type: ignore[arg-type]
    assert monitor.said == ["hostfwd_add qk-nic0 tcp:127.0.0.1:2222-:22"]
    await change_forwards(monitor, "a", "nic0", [Forward(2222, 22)])  # type: ignore[arg-type]
    assert monitor.said[1:] == ["hostfwd_remove qk-nic0 tcp:127.0.0.1:8080"]
    assert monitor.ports == {("tcp", "127.0.0.1", 2222): 22}


async def test_one_that_cannot_be_had_is_told_with_qemus_words() -> None:
    monitor = Usernet(2222)
    with pytest.raises(HostLacks, match=r"'a' cannot have its ports: tcp:127\.0\.0\.1:2222: could"):
        await change_forwards(monitor, "a", "nic0", [Forward(2222, 22), Forward(0, 80)])  # type: ignore[arg-type]
    assert monitor.ports == {("tcp", "127.0.0.1", 8080): 80}


FORWARDS = st.builds(Forward, st.sampled_from([0, 1000, 1001]), st.sampled_from([22, 80]))
PORTS = st.builds(
    lambda port, guest: Forwarded("nic0", "tcp", "127.0.0.1", port, "10.0.2.15", guest),
    st.sampled_from([1000, 1001, 4000]),
    st.sampled_from([22, 80]),
)


@given(st.lists(PORTS, max_size=5), st.lists(FORWARDS, max_size=5))
def test_each_port_serves_one_wish(there: list[Forwarded], wanted: list[Forward]) -> None:
    gone, new = unmatched(there, wanted)
    assert len(there) - len(gone) == len(wanted) - len(new)
    for forward in new:
        if forward.host:
            left = [(port.port, port.guest_port) for port in gone]
            assert (forward.host, forward.guest) not in left
