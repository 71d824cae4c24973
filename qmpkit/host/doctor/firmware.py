"""What guests boot with: the BIOS, UEFI by QEMU's firmware descriptors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from qmpkit.host.doctor.finding import Finding
from qmpkit.host.doctor.place import Host
from qmpkit.host.firmware import FirmwareFiles, installed_firmware

__all__ = ["firmware"]

_DESCRIPTORS = "/usr/share/qemu/firmware"
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm", "/usr/local/share/qemu")
_BUILT_IN = {  # what QEMU loads when nothing is said: file, name, Debian's package
    "x86_64": ("bios-256k.bin", "BIOS", "seabios"),
    "riscv64": ("opensbi-riscv64-generic-fw_dynamic.bin", "OpenSBI", "qemu-system-data"),
}
_UEFI_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}


def firmware(host: Host, archs: Collection[str]) -> Iterator[Finding]:
    """The firmware for guests of the host's architecture and of *archs*."""
    installed = installed_firmware(host.root)
    native = host.arch if host.arch in _UEFI_PACKAGES else "x86_64"
    for arch in sorted({native, *archs}, key=lambda arch: (arch != native, arch)):
        if arch in _BUILT_IN:
            yield _built_in(host, arch)
        if arch in _UEFI_PACKAGES:
            fit = [files for files in installed if files.is_for(arch, None)]
            yield from _uefi(host, arch, fit, native=arch == native)


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
    host: Host, arch: str, fit: Sequence[FirmwareFiles], *, native: bool
) -> Iterator[Finding]:
    plain = [files.code for files in fit if files.plain]
    secure = [files.code for files in fit if files.secure_boot]
    yield Finding(
        topic="firmware",
        name=f"UEFI {arch}",
        verdict="ok" if plain else "note",
        found=plain[0] if plain else f"no descriptor in {_DESCRIPTORS} fits",
        enough_for=f"{arch} guests that boot by UEFI" if plain else "",
        lacks=("uefi", "secure-boot") if native and not plain else (),
        cure="" if plain else host.install(_UEFI_PACKAGES[arch]),
        facts={"code": plain},
    )
    if secure or (native and plain):  # of use to few, and where UEFI is lacking its line says it
        yield _secure_boot(host, arch, secure, native=native)


def _secure_boot(host: Host, arch: str, codes: Sequence[str], *, native: bool) -> Finding:
    return Finding(
        topic="firmware",
        name=f"Secure Boot {arch}",
        verdict="ok" if codes else "note",
        found=codes[0] if codes else f"no descriptor in {_DESCRIPTORS} has it with keys enrolled",
        enough_for=f"{arch} guests that boot by UEFI with Secure Boot" if codes else "",
        lacks=("secure-boot",) if native and not codes else (),
        # The package is there, since UEFI is: its files are not, or not whole.
        cure="" if codes else host.install(_UEFI_PACKAGES[arch], again=True),
        facts={"code": list(codes)},
    )
