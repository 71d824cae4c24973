"""The CPU, KVM's modules, its device and what serves it."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.host.doctor.finding import Finding
from qmpkit.host.doctor.place import Host
from qmpkit.host.doctor.words import count_of_list, plural
from qmpkit.host.kvm import KvmFacts

__all__ = ["cpu_and_kvm"]

_FLAGS = {"vmx": "VT-x (vmx)", "svm": "AMD-V (svm)"}
_PARAVIRTUAL = 'accel = "kvm" (Linux guests may crawl or fail)'


def cpu_and_kvm(host: Host, kvm: KvmFacts) -> Iterator[Finding]:
    """What stands between this CPU and a KVM guest; the cure is on one line only."""
    yield _processors(host)
    if kvm.x86:
        yield _virtualisation(kvm)
    yield _modules(kvm)
    yield _device(host, kvm)
    yield _backend(kvm)
    yield _nested(host, kvm)


def _processors(host: Host) -> Finding:
    online = host.read("/sys/devices/system/cpu/online")
    number = count_of_list(host.status().get("Cpus_allowed_list", online))
    model = _model(host) or f"{host.arch} CPU"
    return Finding(
        topic="KVM",
        name="processors",
        verdict="ok",
        found=f"{model}, {plural(number, 'processor')}" if number else model,
        enough_for=f"guests of up to {plural(number, 'processor')}" if number else "",
        facts={"model": model, "usable": number, "arch": host.arch},
    )


def _model(host: Host) -> str:
    for line in host.read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return " ".join(value.split())
    return ""


def _virtualisation(kvm: KvmFacts) -> Finding:
    flag = _FLAGS.get(kvm.cpu_flag)
    where = " (this host is itself a VM)" if kvm.hypervisor else ""
    cure = ""
    if flag is None and kvm.kind == "paravirtual":
        # Without the device, its own line says this.
        cure = "turn on nested virtualisation for this VM" if kvm.hypervisor else _SET_UP
    return Finding(
        topic="KVM",
        name="CPU flags",
        verdict="ok" if flag else "note",
        found=f"{flag or 'neither VT-x (vmx) nor AMD-V (svm)'}{where}",
        enough_for="hardware KVM" if flag else "",
        lacks=() if flag or kvm.kind == "hardware" else ("kvm",),
        cure=cure,
        facts={"virtualisation": kvm.cpu_flag, "hypervisor": kvm.hypervisor},
    )


_SET_UP = "turn on VT-x or AMD-V in the firmware set-up"


def _modules(kvm: KvmFacts) -> Finding:
    if kvm.modules:
        found = f"{', '.join(kvm.modules)} {'is' if len(kvm.modules) == 1 else 'are'} loaded"
    elif kvm.usable:
        found = "built into the kernel"
    else:
        found = "none of kvm, kvm_intel, kvm_amd, kvm_pvm is loaded"
    return Finding(
        topic="KVM",
        name="modules",
        verdict="ok" if kvm.modules or kvm.usable else "note",
        found=found,
        facts={"modules": list(kvm.modules)},
    )


def _device(host: Host, kvm: KvmFacts) -> Finding:
    facts = {"state": kvm.device}
    if not kvm.usable:
        return Finding(
            topic="KVM",
            name="/dev/kvm",
            verdict="warn",
            found=kvm.why,
            lacks=("kvm",),
            cure=kvm.cure,
            facts=facts,
        )
    mode, group = host.owner_of(host.at("/dev/kvm"))
    return Finding(
        topic="KVM",
        name="/dev/kvm",
        verdict="ok",
        found=f"{mode}, group {group}; {host.user.name} created a VM on it",
        enough_for='accel = "kvm"',
        facts=facts,
    )


def _backend(kvm: KvmFacts) -> Finding:
    facts = {"kind": kvm.kind, "backend": kvm.backend, "usable": kvm.usable}
    by = f" ({kvm.backend})" if kvm.backend else ""
    if kvm.kind == "none":
        return Finding(
            topic="KVM", name="backend", verdict="warn", found="none", lacks=("kvm",), facts=facts
        )
    if kvm.kind == "paravirtual":
        return Finding(
            topic="KVM",
            name="backend",
            verdict="warn",
            found=f"paravirtual{by}, not the CPU's own virtualisation",
            enough_for=_PARAVIRTUAL if kvm.usable else "",
            lacks=("kvm",),
            facts=facts,
        )
    return Finding(
        topic="KVM",
        name="backend",
        verdict="ok",
        found=f"hardware{by}",
        enough_for="guests at the CPU's own speed" if kvm.usable else "",
        facts=facts,
    )


def _nested(host: Host, kvm: KvmFacts) -> Finding:
    words = {True: "on", False: "off", None: "not known of this backend"}
    cure = ""
    on = bool(kvm.nested and kvm.usable)
    found = words[kvm.nested] if kvm.kind != "none" else "no KVM to nest"
    if kvm.nested and not kvm.usable:
        found += ", but of no use while /dev/kvm is not"
    if kvm.nested is False and kvm.usable:
        options = f"options {kvm.backend} nested=1"
        cure = f"echo {options} | {host.sudo}tee /etc/modprobe.d/{kvm.backend}.conf, then reboot"
    return Finding(
        topic="KVM",
        name="nested",
        verdict="ok" if on else "note",
        found=found,
        enough_for="KVM inside guests" if on else "",
        lacks=() if on else ("nested",),
        cure=cure,
        facts={"nested": kvm.nested},
    )
