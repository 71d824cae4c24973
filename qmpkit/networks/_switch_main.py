"""A switch between guests: learns which port has which MAC, over unix datagram sockets.

Run in an isolated Python (`-I -S`) with a directory, in which it binds `switch`; every
other socket there is a port.  It keeps no connection, so ports and the switch itself
may come and go: who sends, sends to a path.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

SHORTEST, LONGEST = 14, 65550  # an Ethernet header; the most that offloading makes of a frame
MACS = 4096  # learned at most: a guest that makes up addresses costs no more memory
SETTLED = 1_000_000_000  # ns


class Switch:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._own = directory + "/switch"
        self._macs: dict[bytes, str] = {}
        self._ports: list[str] = []
        self._read_at = -1
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:  # noqa: SIM105
            os.unlink(self._own)  # noqa: PTH108
        except FileNotFoundError:
            pass
        self._socket.bind(self._own)

    def serve(self) -> None:
        """Pass frames on, for ever."""
        while True:
            frame, sender = self._socket.recvfrom(LONGEST + 1)
            if SHORTEST <= len(frame) <= LONGEST and self._is_port(sender):
                self._pass_on(frame, sender)

    def _is_port(self, sender: object) -> bool:
        """Whether it has a name in our directory; a socket without one gets no answers."""
        return isinstance(sender, str) and sender.rpartition("/")[0] == self._directory

    def _pass_on(self, frame: bytes, sender: str) -> None:
        target, source = frame[:6], frame[6:12]
        if not source[0] & 1:
            self._learn(source, sender)
        port = self._macs.get(target)
        if port == sender:
            return
        if port is not None:
            if self._send(frame, port):
                return
            del self._macs[target]
        for port in self._all_ports():
            if port != sender:
                self._send(frame, port)

    def _learn(self, mac: bytes, port: str) -> None:
        if mac not in self._macs and len(self._macs) >= MACS:
            del self._macs[next(iter(self._macs))]
        self._macs[mac] = port

    def _send(self, frame: bytes, port: str) -> bool:
        """False when nobody is at the port; a full one loses the frame, as a cable would."""
        try:
            self._socket.sendto(frame, _socket.MSG_DONTWAIT, port)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, or there is no memory: the frame is lost
            return True
        return True

    def _all_ports(self) -> list[str]:
        changed = os.stat(self._directory).st_mtime_ns  # noqa: PTH116
        # The clock of files is coarse: a change just after the last look may not show.
        if changed != self._read_at or time.time_ns() - changed < SETTLED:
            names = os.listdir(self._directory)  # noqa: PTH208
            self._ports = [f"{self._directory}/{name}" for name in names if name != "switch"]
            self._read_at = changed
        return self._ports


if __name__ == "__main__":
    os.umask(0o177)
    Switch(sys.argv[1]).serve()
