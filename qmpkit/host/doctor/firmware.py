"""What guests boot with: the BIOS, UEFI by QEMU's firmware descriptors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from qmpkit.host.doctor.finding import Finding, Need
from qmpkit.host.doctor.place import Host

__all__ = ["firmware"]

_DESCRIPTORS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware", "/usr/local/share/qemu/firmware")
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm", "/usr/local/share/qemu")
_BUILT_IN = {  # what QEMU loads when nothing is said: file, name, Debian's package
    "x86_64": ("bios-256k.bin", "BIOS", "seabios"),
    "riscv64": ("opensbi-riscv64-generic-fw_dynamic.bin", "OpenSBI", "qemu-system-data"),
}
_UEFI_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}


def firmware(host: Host, archs: Collection[str]) -> Iterator[Finding]:
    """The firmware for guests of the host's architecture and of *archs*."""
    descriptors = list(_descriptors(host))
    native = host.arch if host.arch in _UEFI_PACKAGES else "x86_64"
    for arch in sorted({native, *archs}, key=lambda arch: (arch != native, arch)):
        if arch in _BUILT_IN:
            yield _built_in(host, arch)
        if arch in _UEFI_PACKAGES:
            yield from _uefi(host, arch, descriptors, native=arch == native)


def _built_in(host: Host, arch: str) -> Finding:
    file, name, package = _BUILT_IN[arch]
    path = next((f"{folder}/{file}" for folder in _DATA if host.exists(f"{folder}/{file}")), None)
    return Finding(
        topic="firmware",
        name=f"{name} {arch}",
        verdict="note" if path is None else "ok",
        found=path or f"{file} is not where distributions put it",
        enough_for="" if path is None else f"{arch} guests without UEFI",
        cure="" if path else f"{host.install(package)}, if QEMU asks for {file}",
        facts={"path": path},
    )


def _uefi(
    host: Host, arch: str, descriptors: list[dict[str, Any]], *, native: bool
) -> Iterator[Finding]:
    usable = [found for found in descriptors if _is_for(found, arch) and _complete(host, found)]
    plain = [found for found in usable if "secure-boot" not in found.get("features", ())]
    secure = [found for found in usable if "enrolled-keys" in found.get("features", ())]
    for name, chosen, need in (("UEFI", plain, "uefi"), ("Secure Boot", secure, "secure-boot")):
        if not chosen and name == "Secure Boot" and (not native or not plain):
            continue  # of use to few, and where UEFI is lacking its line says it
        lacks: tuple[Need, ...] = ("uefi", "secure-boot") if need == "uefi" else ("secure-boot",)
        yield Finding(
            topic="firmware",
            name=f"{name} {arch}",
            verdict="ok" if chosen else "note",
            found=_code(chosen[0]) if chosen else f"no descriptor in {_DESCRIPTORS[1]} fits",
            enough_for=f"{arch} guests that boot by UEFI"
            + (" with Secure Boot" if need == "secure-boot" else "")
            if chosen
            else "",
            lacks=lacks if native and not chosen else (),
            cure="" if chosen else host.install(_UEFI_PACKAGES[arch]),
            facts={"code": [_code(found) for found in chosen]},
        )


def _descriptors(host: Host) -> Iterator[dict[str, Any]]:
    """QEMU's firmware descriptors in their order of preference; unreadable ones are left out."""
    seen = set()
    for folder in _DESCRIPTORS:
        for name in host.names(folder):
            if name.endswith(".json") and name not in seen:
                seen.add(name)
                try:
                    found = json.loads(host.read(f"{folder}/{name}", 1 << 16))
                    _code(found)
                except (ValueError, KeyError, TypeError):
                    continue
                yield found


def _code(descriptor: dict[str, Any]) -> str:
    return str(descriptor["mapping"]["executable"]["filename"])


def _is_for(descriptor: dict[str, Any], arch: str) -> bool:
    targets = descriptor.get("targets", ())
    return "uefi" in descriptor.get("interface-types", ()) and any(
        target.get("architecture") == arch for target in targets
    )


def _complete(host: Host, descriptor: dict[str, Any]) -> bool:
    template = descriptor["mapping"].get("nvram-template", {}).get("filename")
    return host.exists(_code(descriptor)) and (template is None or host.exists(template))
