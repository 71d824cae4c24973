"""A switch between guests: learns which port has which MAC, over unix sockets.

Run in an isolated Python (`-I -S`) with a directory and the socket bound there that is its
own.  Every other socket in the directory is a port: for datagrams, or, when its name begins
with `@`, one that a QEMU listens on and the switch connects to, where frames have their length
before them.  So QEMU's `dgram` and `stream` netdevs want it.  Ports and the switch itself may
come and go: who sends datagrams sends to a path, and a QEMU whose connection has ended listens
again (a `stream` netdev that connects does that once, before QEMU 8.0).  An empty datagram says
that a port is about to come.  It ends when its own path is no more, or another switch's.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

SHORTEST, LONGEST = 14, 65550  # an Ethernet header; the most that offloading makes of a frame
MACS = 4096  # learned at most: a guest that makes up addresses costs no more memory
SETTLED = 1_000_000_000  # ns
HEADER = 4
UNSENT = 1 << 20  # bytes kept for a guest that does not read; what is more is lost
AT_ONCE = 64  # frames of one port before the others have their turn
DATAGRAMS = ".datagrams"  # our own socket; no port begins with a dot
CABLE = "@"  # begins the name of a port to connect to
LOOK_EVERY = 10.0  # seconds
SOON = 0.01  # … and after something has changed, then twice as long each time


class Cable:
    """A port that is a connection."""

    def __init__(self, path: str, connected: _socket.socket) -> None:
        self.path = path
        self.socket = connected
        self.unsent = bytearray()
        self._read = bytearray()

    def frames(self) -> list[bytes] | None:
        """Those that have come whole; None when it has ended, or is no port."""
        try:
            data = self.socket.recv(LONGEST)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._read += data
        found, at = [], 0
        while len(self._read) - at >= HEADER:
            size = int.from_bytes(self._read[at : at + HEADER], "big")
            if size > LONGEST:
                return None
            if len(self._read) - at < HEADER + size:
                break
            found.append(bytes(self._read[at + HEADER : at + HEADER + size]))
            at += HEADER + size
        del self._read[:at]
        return found if data else None

    def send(self, frame: bytes) -> None:
        """All of it or nothing: half a frame would spoil all that follow."""
        if len(self.unsent) < UNSENT:
            self.unsent += len(frame).to_bytes(HEADER, "big") + frame
            self.flush()

    def flush(self) -> None:
        """Send what is left, as far as it is taken; its end is seen by reading."""
        while self.unsent:
            try:
                del self.unsent[: self.socket.send(self.unsent)]
            except BlockingIOError:
                return
            except OSError:
                self.unsent.clear()


Port = str | Cable


class Switch:
    """Passes frames between the ports of one directory."""

    def __init__(self, directory: str, datagrams: int) -> None:
        self._directory = directory
        self._datagrams = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0, datagrams)
        self._datagrams.setblocking(False)
        self._cables: dict[int, Cable] = {}
        self._macs: dict[bytes, Port] = {}
        self._paths: list[Port] = []
        self._to_connect: list[str] = []
        self._read_at = -1
        self._own = self._inode()
        self._pause = SOON
        self._look_at = 0.0
        self._poll = select.epoll()
        self._poll.register(datagrams, select.EPOLLIN)

    def serve(self, look_every: float = LOOK_EVERY) -> None:
        """Pass frames on until nobody can reach us any more."""
        quiet_since = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= self._look_at:
                # Nobody tells that a path is removed; whoever would ask may have forgotten us.
                if now - quiet_since >= look_every and self._inode() != self._own:
                    return
                self._connect()
                self._look_at = now + min(self._pause, look_every)
                self._pause = min(2 * self._pause, look_every)
            ready = self._poll.poll(max(0.0, self._look_at - now))
            if ready:
                quiet_since = time.monotonic()
            for fd, events in ready:
                if fd == self._datagrams.fileno():
                    self._take_datagrams()
                elif cable := self._cables.get(fd):
                    self._attend(cable, events)

    def _inode(self) -> int:
        try:
            return os.stat(f"{self._directory}/{DATAGRAMS}").st_ino  # noqa: PTH116
        except OSError:
            return -1

    def _take_datagrams(self) -> None:
        for _ in range(AT_ONCE):
            try:
                frame, sender = self._datagrams.recvfrom(LONGEST + 1)
            except BlockingIOError:
                return
            if self._is_port(sender):
                self._pass_on(frame, sender)
            elif not frame:
                self._look_soon()

    def _is_port(self, sender: object) -> bool:
        """Whether it has a name in our directory; a socket without one gets no answers."""
        return isinstance(sender, str) and sender.rpartition("/")[0] == self._directory

    def _look_soon(self) -> None:
        """And again and again: nobody tells when QEMU listens."""
        self._pause = SOON
        self._look_at = min(self._look_at, time.monotonic() + SOON)

    def _connect(self) -> None:
        """To those who listen and are not connected yet."""
        self._read_directory()
        connected = {cable.path for cable in self._cables.values()}
        for path in self._to_connect:
            if path not in connected:
                self._connect_to(path)

    def _connect_to(self, path: str) -> None:
        try:
            made = _connected(path)
        except OSError:  # nobody listens, or no room for one more who waits, or no descriptors
            return
        self._cables[made.fileno()] = Cable(path, made)
        self._poll.register(made.fileno(), select.EPOLLIN)

    def _attend(self, cable: Cable, events: int) -> None:
        if events & select.EPOLLOUT:
            cable.flush()
        frames = cable.frames() if events & ~select.EPOLLOUT else []
        for frame in frames or ():
            self._pass_on(frame, cable)
        if frames is None:
            self._disconnect(cable)
        else:
            self._await(cable)

    def _await(self, cable: Cable) -> None:
        wanted = select.EPOLLIN | (select.EPOLLOUT if cable.unsent else 0)
        self._poll.modify(cable.socket.fileno(), wanted)

    def _disconnect(self, cable: Cable) -> None:
        fd = cable.socket.fileno()
        self._poll.unregister(fd)
        del self._cables[fd]
        self._macs = {mac: port for mac, port in self._macs.items() if port is not cable}
        cable.socket.close()
        self._look_soon()

    def _pass_on(self, frame: bytes, sender: Port) -> None:
        if not SHORTEST <= len(frame) <= LONGEST:
            return
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
        self._read_directory()
        for port in (*self._paths, *self._cables.values()):
            if port != sender:
                self._send(frame, port)

    def _learn(self, mac: bytes, port: Port) -> None:
        if mac not in self._macs and len(self._macs) >= MACS:
            del self._macs[next(iter(self._macs))]
        self._macs[mac] = port

    def _send(self, frame: bytes, port: Port) -> bool:
        """False when nobody is at the port; a full one loses the frame, as a cable would."""
        if isinstance(port, Cable):
            port.send(frame)
            self._await(port)
            return True
        try:
            self._datagrams.sendto(frame, _socket.MSG_DONTWAIT, port)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, or there is no memory: the frame is lost
            return True
        return True

    def _read_directory(self) -> None:
        try:
            changed = os.stat(self._directory).st_mtime_ns  # noqa: PTH116
            # The clock of files is coarse: a change just after the last look may not show.
            if changed != self._read_at or time.time_ns() - changed < SETTLED:
                names = os.listdir(self._directory)  # noqa: PTH208
                ports = [
                    f"{self._directory}/{name}" for name in names if name[0] not in "." + CABLE
                ]
                cables = [f"{self._directory}/{name}" for name in names if name[0] == CABLE]
                self._paths, self._to_connect, self._read_at = list(ports), cables, changed
        except FileNotFoundError:  # removed; connections still have each other
            self._paths, self._to_connect = [], []


def _connected(path: str) -> _socket.socket:
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


if __name__ == "__main__":
    Switch(sys.argv[1], int(sys.argv[2])).serve()
