"""What the NICs need of the host: free ports, tap devices, sockets to connect to.  Blocking."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from qmpkit.errors import Fault, HostLacks
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.holders import processes_with, socket_inodes
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Forward, StreamNic, TapNic, UserNic

__all__ = ["check_network"]

_IFF_TAP = 0x2
_ANY = "0.0.0.0"


def check_network(spec: MachineSpec, root: Path = Path("/")) -> Iterator[Problem]:
    """Every NIC's needs.

    With a launcher QEMU may live in another network namespace, where these
    answers would be wrong: then nothing is checked.
    """
    if spec.launcher:
        return
    forwards: list[tuple[str, Forward]] = []
    for number, nic in enumerate(spec.nics):
        where = f"nics[{number}]"
        match nic:
            case UserNic():
                forwards += [
                    (f"{where}.forwards[{i}]", forward) for i, forward in enumerate(nic.forwards)
                ]
            case TapNic():
                yield from _check_tap(nic, where, root)
            case StreamNic():
                yield from _check_stream(nic, where)
    yield from _check_forwards(forwards, root)


def _check_forwards(forwards: list[tuple[str, Forward]], root: Path) -> Iterator[Problem]:
    for number, (where, forward) in enumerate(forwards):
        if not 0 < forward.host <= 65535 or not _is_ipv4(forward.address):
            continue  # 0 lets the kernel choose; the rest is a fault of the spec alone
        rival = next((at for at, other in forwards[:number] if _clash(forward, other)), None)
        if rival is not None:
            message = f"port {forward.host} is forwarded by {rival} already"
            yield Problem(Fault(f"{where}.host", message))
        else:
            yield from _check_port(forward, f"{where}.host", root)


def _is_ipv4(address: str) -> bool:
    # Anything else would be looked up in the DNS by bind().
    try:
        socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError):
        return False
    return True


def _clash(one: Forward, other: Forward) -> bool:
    same_port = (one.proto, one.host) == (other.proto, other.host)
    return same_port and (one.address == other.address or _ANY in (one.address, other.address))


def _check_port(forward: Forward, where: str, root: Path) -> Iterator[Problem]:
    kind = socket.SOCK_STREAM if forward.proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as trial:
        if forward.proto == "tcp":  # as QEMU does, so that a port in TIME_WAIT is free
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((forward.address, forward.host))
        except OSError as error:
            yield Problem(Fault(where, *_explain_port(forward, error, root)))


def _explain_port(forward: Forward, error: OSError, root: Path) -> tuple[str, str]:
    port = f"{forward.proto} port {forward.host}"
    if error.errno == errno.EADDRINUSE:
        inodes = socket_inodes(forward.proto, forward.host, root)
        holders = sorted({who for inode in inodes for who in processes_with(inode, root)})
        by = f" by {', '.join(holders)}" if holders else ""
        return f"{port} is taken{by}", "choose another, or 0 for any free one"
    if error.errno == errno.EACCES:
        return f"{port} needs root on this host", "choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{forward.address} is not an address of this host", 'address = "127.0.0.1"'
    return f"{port} cannot be had: {error.strerror}", ""


def _check_tap(nic: TapNic, where: str, root: Path) -> Iterator[Problem]:
    if nic.ifname is not None:  # else whoever hands it over has opened it
        yield from _check_device(nic.ifname, where, root)
    if nic.vhost and not (root / "dev/vhost-net").exists():
        cure = "sudo modprobe vhost_net, or vhost = false"
        yield lacking(f"{where}.vhost", HostLacks("/dev/vhost-net does not exist", cure))
    elif nic.vhost and not os.access(root / "dev/vhost-net", os.R_OK | os.W_OK, effective_ids=True):
        cure = "chmod 666 /dev/vhost-net, or vhost = false"
        yield lacking(f"{where}.vhost", HostLacks("/dev/vhost-net may not be opened", cure))


def _check_device(ifname: str, where: str, root: Path) -> Iterator[Problem]:
    device = root / "sys/class/net" / ifname
    if not (root / "dev/net/tun").exists():
        cure = "sudo modprobe tun; in a container, pass the device in"
        yield lacking(where, HostLacks("/dev/net/tun does not exist, a tap NIC needs it", cure))
    elif not os.access(root / "dev/net/tun", os.R_OK | os.W_OK, effective_ids=True):
        yield lacking(where, HostLacks("/dev/net/tun may not be opened", "chmod 666 /dev/net/tun"))
    if not device.is_dir():
        hint = f"sudo ip tuntap add dev {ifname} mode tap user $USER"
        yield Problem(Fault(f"{where}.ifname", f"there is no tap device {ifname!r}", hint))
    elif not _is_tap(device):
        yield Problem(Fault(f"{where}.ifname", f"{ifname!r} is no tap device"))


def _is_tap(device: Path) -> bool:
    try:
        return bool(int((device / "tun_flags").read_text(), 16) & _IFF_TAP)
    except (OSError, ValueError):
        return False


def _check_stream(nic: StreamNic, where: str) -> Iterator[Problem]:
    if nic.server or nic.address is None or not nic.address.startswith("unix:"):
        return
    path = nic.address.removeprefix("unix:")
    if not Path(path).is_socket():
        hint = "start its other end first, or server = true"
        yield Problem(Fault(f"{where}.address", f"there is no socket {path!r}", hint))
