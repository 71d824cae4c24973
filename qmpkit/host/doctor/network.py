"""Tap devices, bridges and the kernel's helpers for virtio: vhost-net, vhost-vsock."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.host.doctor.finding import Finding, Need
from qmpkit.host.doctor.place import Host
from qmpkit.host.doctor.words import listing

__all__ = ["network"]

_ROOT = 0


def network(host: Host) -> Iterator[Finding]:
    """What NICs and vsock devices find here; user-mode NICs need none of it."""
    yield _device(host, "/dev/net/tun", "tun", "tap")
    yield _device(host, "/dev/vhost-net", "vhost_net", "vhost-net")
    yield _device(host, "/dev/vhost-vsock", "vhost_vsock", "vsock")
    yield _bridges(host)
    yield _bridge_helper(host)


def _device(host: Host, path: str, module: str, need: Need) -> Finding:
    state = host.module(module)
    usable = host.exists(path) and host.may_use(host.at(path))
    facts = {"exists": host.exists(path), "usable": usable, "module": state}
    if usable:
        mode, group = host.owner_of(host.at(path))
        return Finding(
            topic="network",
            name=path,
            verdict="ok",
            found=f"{mode}, group {group}",
            enough_for=_USES[need],
            facts=facts,
        )
    if host.exists(path):
        mode, group = host.owner_of(host.at(path))
        return Finding(
            topic="network",
            name=path,
            verdict="note",
            found=f"user {host.user.name!r} may not open it ({mode}, group {group})",
            lacks=(need,),
            cure=_cure_of_rights(host, path, mode, group),
            facts=facts,
        )
    return Finding(
        topic="network",
        name=path,
        verdict="note",
        found="not there" + (f", this kernel has no {module}" if state == "absent" else ""),
        lacks=(need,),
        cure={
            "absent": f"a kernel with {module}",
            "loaded": f"in a container, pass it in: --device {path}",
            "available": f"{host.sudo}modprobe {module}",
            "unknown": f"{host.sudo}modprobe {module}; in a container, pass it in: --device {path}",
        }[state],
        facts=facts,
    )


_USES: dict[Need, str] = {
    "tap": "NICs on tap devices",
    "vhost-net": "tap NICs served by the kernel (vhost)",
    "vsock": "vsock devices",
}


def _cure_of_rights(host: Host, path: str, mode: str, group: str) -> str:
    if host.user.uid == _ROOT:
        return f"allow the device in this container: --device {path}"
    if path == "/dev/net/tun":
        return f"sudo chmod 666 {path}"  # as udev makes it
    if group == "kvm" and mode[4:6] == "rw":
        return f"sudo usermod --append --groups kvm {host.user.name}, then log in again"
    return f"sudo chgrp kvm {path} && sudo chmod 660 {path}, and join the group kvm"


def _bridges(host: Host) -> Finding:
    links = host.names("/sys/class/net")
    bridges = [link for link in links if host.exists(f"/sys/class/net/{link}/bridge")]
    taps = [link for link in links if host.exists(f"/sys/class/net/{link}/tun_flags")]
    state = host.module("bridge")
    found = listing(bridges) if bridges else "none"
    found += f"; tap devices: {listing(taps)}" if taps else "; no tap device"
    if not bridges and state == "absent":
        found += "; this kernel has no bridges"
    cure = f"{host.sudo}ip link add br0 type bridge && {host.sudo}ip link set br0 up"
    return Finding(
        topic="network",
        name="bridges",
        verdict="ok" if bridges else "note",
        found=found,
        enough_for="guests that share a network" if bridges else "",
        cure="" if bridges else "a kernel with bridge" if state == "absent" else cure,
        facts={"bridges": bridges, "taps": taps, "module": state},
    )


def _bridge_helper(host: Host) -> Finding:
    path = host.program("qemu-bridge-helper")
    if path is None:
        return Finding(
            topic="network",
            name="bridge helper",
            verdict="note",
            found="qemu-bridge-helper is not installed",
            lacks=("bridge",),
            cure=host.install("qemu-system-common"),
        )
    shown = host.shown(path)
    allowed = _allowed_bridges(host)
    mode, _ = host.owner_of(path)
    privileged = mode[3:4] == "s" or host.user.uid == _ROOT
    ready = privileged and bool(allowed)
    steps = [] if privileged else [f"{host.sudo}chmod u+s {shown}"]
    if not allowed:
        steps.append(f"echo allow br0 | {host.sudo}tee /etc/qemu/bridge.conf")
    return Finding(
        topic="network",
        name="bridge helper",
        verdict="ok" if ready else "note",
        found=f"{shown}, {'may' if privileged else 'may not'} act as root; "
        + (f"/etc/qemu/bridge.conf allows {listing(allowed)}" if allowed else "allows no bridge"),
        enough_for="NICs that an ordinary user puts on a bridge" if ready else "",
        lacks=() if ready else ("bridge",),
        cure="; ".join(steps),
        facts={"path": shown, "privileged": privileged, "allowed": allowed},
    )


def _allowed_bridges(host: Host) -> list[str]:
    lines = (line.split() for line in host.read("/etc/qemu/bridge.conf").splitlines())
    return [words[1] for words in lines if len(words) == 2 and words[0] == "allow"]
