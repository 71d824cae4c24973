"""For how long nothing has come by a TCP connection, which only the kernel knows.  Blocking."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

__all__ = ["quiet_for"]

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_INFO = 2  # INET_DIAG_INFO: struct tcp_info
_ESTABLISHED = 1 << 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, as far as its ports
_PORTS = struct.Struct("!HH")
_ANY = bytes(36) + b"\xff" * 8  # any addresses and device, and no cookie
_FOUND = 72  # bytes of struct inet_diag_msg, which the attributes follow
_LAST_DATA_RECV = 52  # in struct tcp_info, in milliseconds
_MOST = 1 << 16
_PATIENCE = 1.0


def quiet_for(port: int) -> float | None:
    """Seconds since something last came by a connection of *port* of this host.

    None when there is no connection, or the kernel does not tell.
    """
    try:
        quiet = [*_quiet(socket.AF_INET, port), *_quiet(socket.AF_INET6, port)]
    except OSError:
        return None
    return min(quiet, default=None)


def _quiet(family: int, port: int) -> Iterator[float]:
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
    asked += _PORTS.pack(port, 0) + _ANY
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _DUMP, 1, 0) + asked)
        while True:
            for kind, found in _messages(kernel.recv(_MOST)):
                if kind != _BY_FAMILY:  # the end, or a refusal
                    return
                for name, value in _attributes(found[_FOUND:]):
                    if name == _INFO:
                        yield struct.unpack_from("=I", value, _LAST_DATA_RECV)[0] / 1000


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[_padded(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[_padded(length) :]


def _padded(length: int) -> int:
    """Never 0, so that nonsense comes to an end too."""
    return max((length + 3) & ~3, 4)
