"""For how long nothing has come by a connection: asked of the real kernel."""

from __future__ import annotations

import socket
import time

import pytest

from qmpkit.host.tcp_quiet import quiet_for


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_has_come_last(address: str) -> None:
    """By the port at which it came, of all connections there, and of none by another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening:
        port = listening.getsockname()[1]
        assert quiet_for(port) is None
        with (
            socket.create_connection((address, port)) as near,
            socket.create_connection((address, port)),
        ):
            time.sleep(0.3)
            quiet = quiet_for(port)
            assert quiet is not None and 0.3 <= quiet < 30
            near.send(b"x")
            again = quiet_for(port)
            assert again is not None and again < quiet
            ours = quiet_for(near.getsockname()[1])  # nothing has come back by it
            assert ours is not None and ours >= 0.3
        assert quiet_for(port) is None
