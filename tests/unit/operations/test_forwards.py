"""Reading `info usernet`, whose words are for people."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpkit.operations.forwards import Connection, Forwarded, read_connections, read_usernet

# As QEMU 7.2 and 10.0 say it, with connections of the guest's own in between.
SAID = """\
Hub -1 (qk-nic0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[ESTABLISHED]   19       127.0.0.1 36207       10.0.2.15    22     0     0\r
  TCP[HOST_FORWARD]  11       127.0.0.1 36207       10.0.2.15    22     0     0\r
  TCP[HOST_FORWARD]   5               * 41549       10.0.2.77    80     0     0\r
  UDP[236 sec]       20       10.0.2.15 45561        10.0.2.3    53     0     0\r
  UDP[HOST_FORWARD]  10       127.0.0.1 45561       10.0.2.15    53     0     0\r
  ICMP[12 sec]       21       10.0.2.15     0         1.1.1.1     0     0     0\r
Hub 0 (theirs):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[HOST_FORWARD]  12       127.0.0.1 41253   192.168.77.15    22     0     0\r
"""


def test_forwards_of_every_nic() -> None:
    assert read_usernet(SAID) == (
        Forwarded("nic0", "tcp", "127.0.0.1", 36207, "10.0.2.15", 22),
        Forwarded("nic0", "tcp", "0.0.0.0", 41549, "10.0.2.77", 80),
        Forwarded("nic0", "udp", "127.0.0.1", 45561, "10.0.2.15", 53),
        Forwarded("theirs", "tcp", "127.0.0.1", 41253, "192.168.77.15", 22),
    )


def test_no_usernet_is_no_forward() -> None:
    assert read_usernet("") == ()


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert isinstance(read_usernet(text), tuple)


def test_connections_that_are_no_forward() -> None:
    assert read_connections(SAID) == (Connection(19, "ESTABLISHED", "10.0.2.15", 22),)
