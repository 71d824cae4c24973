"""What confines QEMU, and us: seccomp, SELinux, AppArmor, user namespaces."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.host.doctor.finding import Finding
from qmpkit.host.doctor.place import Host

__all__ = ["confinement"]

_FILTERED = "2"
_OTHER_PROFILE = (
    "if QEMU is refused something: another profile (docker: --security-opt apparmor=unconfined)"
)
_AVC = "if QEMU is refused a file: sudo ausearch -m AVC -ts recent"


def confinement(host: Host) -> Iterator[Finding]:
    """Whether QEMU can be sandboxed, and what the host forbids it by itself."""
    yield _seccomp(host)
    yield _selinux(host)
    yield _apparmor(host)
    yield _user_namespaces(host)


def _seccomp(host: Host) -> Finding:
    status = host.status()
    filters = host.exists("/proc/sys/kernel/seccomp/actions_avail") or "Seccomp" in status
    ours = status.get("Seccomp") == _FILTERED
    if not filters:
        return Finding(
            topic="confinement",
            name="seccomp",
            verdict="warn",
            found="this kernel has no seccomp filters",
            lacks=("run",),
            cure="sandbox = false in the profile, or a kernel with CONFIG_SECCOMP_FILTER",
            facts={"filters": False, "filtered": ours},
        )
    return Finding(
        topic="confinement",
        name="seccomp",
        verdict="ok",
        found="filters" + ("; we are filtered already, as in a container" if ours else ""),
        enough_for="QEMU's sandbox",
        facts={"filters": True, "filtered": ours},
    )


def _selinux(host: Host) -> Finding:
    enforce = host.read("/sys/fs/selinux/enforce")
    if enforce not in ("0", "1"):
        return Finding(
            topic="confinement",
            name="SELinux",
            verdict="ok",
            found="off",
            facts={"mode": "off"},
        )
    mode = "enforcing" if enforce == "1" else "permissive"
    context = host.read("/proc/self/attr/current").rstrip("\0")
    return Finding(
        topic="confinement",
        name="SELinux",
        verdict="note" if enforce == "1" else "ok",
        found=f"{mode}, we are {context or 'of unknown context'}",
        cure=_AVC if enforce == "1" else "",
        facts={"mode": mode, "context": context},
    )


def _apparmor(host: Host) -> Finding:
    if host.read("/sys/module/apparmor/parameters/enabled") != "Y":
        return Finding(
            topic="confinement",
            name="AppArmor",
            verdict="ok",
            found="off",
            facts={"enabled": False},
        )
    label = host.read("/proc/self/attr/apparmor/current") or host.read("/proc/self/attr/current")
    confined = label.endswith("(enforce)")
    return Finding(
        topic="confinement",
        name="AppArmor",
        verdict="note" if confined else "ok",
        found=f"on, we are {label or 'of unknown label'}",
        cure=_OTHER_PROFILE if confined else "",
        facts={"enabled": True, "label": label},
    )


def _user_namespaces(host: Host) -> Finding:
    """An ordinary user builds images in one."""
    most = host.number("/proc/sys/user/max_user_namespaces")
    shut = [switch for switch, (file, value) in _SWITCHES.items() if host.number(file) == value]
    facts = {"maximum": most, "restricted_by": shut}
    if most is not None and (host.user.uid == 0 or not shut):
        return Finding(
            topic="confinement",
            name="namespaces",
            verdict="ok",
            found="user namespaces are open to us",
            enough_for="building images without root",
            facts=facts,
        )
    nobody = "this kernel has no user namespaces"
    return Finding(
        topic="confinement",
        name="namespaces",
        verdict="note",
        found=nobody if most is None else "ordinary users may not make user namespaces",
        lacks=() if host.user.uid == 0 else ("build",),
        cure="" if most is None else f"{host.sudo}sysctl {' '.join(shut)}",
        facts=facts,
    )


# The setting that opens them → the file that shows the opposite, and what stands in it then.
_SWITCHES = {
    "user.max_user_namespaces=15000": ("/proc/sys/user/max_user_namespaces", 0),
    "kernel.unprivileged_userns_clone=1": ("/proc/sys/kernel/unprivileged_userns_clone", 0),
    "kernel.apparmor_restrict_unprivileged_userns=0": (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        1,
    ),
}
