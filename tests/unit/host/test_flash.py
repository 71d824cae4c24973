"""Which files a UEFI is, and every problem of them, on a host whose firmware is made up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import HostLacks, ImageInUse
from qmpkit.host import check_files, flash
from qmpkit.host.firmware import FirmwareFiles
from qmpkit.host.flash import look_at_flash
from qmpkit.spec.facts import Flash
from qmpkit.spec.firmware import Uefi
from tests.unit.host.images_on_disk import qcow2
from tests.unit.host.uefi_store import variable

ARM = (("aarch64", "virt-*"),)
PC = (("x86_64", "pc-q35-*"),)
SECURE = frozenset({"secure-boot", "enrolled-keys", "requires-smm"})
Firmware = Callable[..., FirmwareFiles]


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Firmware:
    """Installs one firmware after the other, the most preferred first."""
    installed: list[FirmwareFiles] = []
    monkeypatch.setattr(flash, "installed_firmware", lambda: tuple(installed))

    def install(
        name: str, code: str = "", template: str = "", size: int = 4096, **more: Any
    ) -> FirmwareFiles:
        paths = [
            str(tmp_path / (text or f"{name}.{kind}"))
            for text, kind in ((code, "code"), (template, "empty"))
        ]
        for path in paths:
            Path(path).write_bytes(bytes(size))
        more = {"targets": PC, **more}
        installed.append(FirmwareFiles(code=paths[0], template=paths[1], **more))
        return installed[-1]

    return install


def found(uefi: Uefi, arch: str = "x86_64", machine: str | None = "pc-q35-7.2") -> Flash:
    """The files, when there is nothing to complain about."""
    chosen, problems = look_at_flash(uefi, arch, machine)
    assert problems == ()
    assert chosen is not None
    return chosen


def told(uefi: Uefi, arch: str = "x86_64", **more: Any) -> list[str]:
    _, problems = look_at_flash(uefi, arch, None, **more)
    return [str(problem.fault) for problem in problems]


def file(path: Path, size: int = 4096) -> str:
    path.write_bytes(bytes(size))
    return str(path)


# --- the host's own


def test_the_first_that_fits(firmware: Firmware) -> None:
    enrolled = firmware("enrolled", features=SECURE)
    firmware("arm", targets=ARM)
    plain = firmware("plain", code_format="qcow2", template_format="qcow2")
    firmware("second")
    assert found(Uefi()) == Flash(
        code=plain.code, template=plain.template, code_format="qcow2", store_format="qcow2"
    )
    assert found(Uefi(secure_boot=True)) == Flash(code=enrolled.code, template=enrolled.template)


@pytest.mark.parametrize("machine", ["pc-q35-9.0", "microvm"])
def test_none_that_fits(firmware: Firmware, machine: str) -> None:
    firmware("arm", targets=ARM)
    firmware("new", targets=(("x86_64", "pc-q35-10.*"),))
    nothing, (problem,) = look_at_flash(Uefi(), "x86_64", machine)
    assert nothing is None
    assert isinstance(problem.alone, HostLacks)
    assert str(problem.fault) == (
        "firmware: this host has no UEFI firmware for x86_64 (sudo apt install ovmf)"
    )


def test_no_secure_boot(firmware: Firmware) -> None:
    firmware("plain")
    assert told(Uefi(secure_boot=True)) == [
        "firmware: this host has no UEFI firmware with Secure Boot for x86_64 "
        "(sudo apt install ovmf)"
    ]


def test_that_cannot_be_read(firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = firmware("plain")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(check_files, "_open_once", refuse)  # root may read everything
    assert told(Uefi()) == [
        f"firmware.code: {plain.code!r} cannot be read: permission denied",
        f"firmware.template: {plain.template!r} cannot be read: permission denied",
    ]


# --- named in the spec


def test_a_code_that_is_described(firmware: Firmware) -> None:
    firmware("first")
    one = firmware("one", code_format="qcow2", template_format="qcow2")
    expected = Flash(
        code=one.code, template=one.template, code_format="qcow2", store_format="qcow2"
    )
    assert found(Uefi(one.code)) == expected
    # As it stands in the spec of a machine that has been started.
    assert found(Uefi(one.code, one.template)) == expected


def test_a_described_code_with_a_store_of_ones_own(firmware: Firmware, tmp_path: Path) -> None:
    one = firmware("one", code_format="qcow2", template_format="qcow2")
    mine = file(tmp_path / "mine")
    assert found(Uefi(one.code, mine)) == Flash(
        code=one.code, template=mine, code_format="qcow2", store_format="raw"
    )


def test_two_with_the_same_code(firmware: Firmware) -> None:
    """As Fedora has them: the keys are in the store."""
    keys = firmware("keys", code="c", features=SECURE, template_format="qcow2")
    bare = firmware("bare", code="c", features=SECURE - {"enrolled-keys"})
    assert found(Uefi(keys.code, secure_boot=True)).template == keys.template
    assert found(Uefi(keys.code)).template == bare.template
    # One that is named counts more, and has its own format.
    chosen = found(Uefi(keys.code, keys.template))
    assert (chosen.template, chosen.store_format) == (keys.template, "qcow2")
    chosen = found(Uefi(keys.code, bare.template))
    assert (chosen.template, chosen.store_format) == (bare.template, "raw")


def test_files_that_nothing_describes(firmware: Firmware, tmp_path: Path) -> None:
    firmware("plain", features=SECURE)
    code, template = file(tmp_path / "c"), file(tmp_path / "t")
    expected = Flash(code=code, template=template)
    assert found(Uefi(code, template), "riscv64", "virt") == expected
    assert found(Uefi(code, template, secure_boot=True)) == expected


def test_a_code_alone_that_nothing_describes(firmware: Firmware, tmp_path: Path) -> None:
    firmware("plain")
    code = file(tmp_path / "c")
    assert look_at_flash(Uefi(code), "x86_64", None)[0] is None
    assert told(Uefi(code)) == [
        f"firmware.template: it is not known which empty store belongs to {code!r} (name it)"
    ]


def test_a_code_for_another_architecture(firmware: Firmware) -> None:
    """It would start, and hang without a word."""
    arm = firmware("arm", targets=ARM)
    assert told(Uefi(arm.code)) == [
        f"firmware.code: {arm.code!r} is for aarch64, the machine is x86_64"
    ]
    assert found(Uefi(arm.code), "aarch64", "virt-7.2").code == arm.code


def test_a_code_for_other_versions_is_the_users_choice(firmware: Firmware) -> None:
    new = firmware("new", targets=(("x86_64", "pc-q35-10.*"),))
    assert found(Uefi(new.code), machine="pc-q35-7.2").code == new.code


def test_missing_files(tmp_path: Path, firmware: Firmware) -> None:
    code, template = str(tmp_path / "OVMF_CODE.fd"), str(tmp_path / "absent")
    assert told(Uefi(code, template)) == [
        f"firmware.code: {code!r} does not exist",
        f"firmware.template: {template!r} does not exist",
    ]
    file(tmp_path / "OVMF_COED.fd")
    assert "did you mean 'OVMF_COED.fd'?" in told(Uefi(code, template))[0]


@pytest.mark.parametrize("kind", ["code", "template", "vars"])
def test_what_is_no_file(tmp_path: Path, firmware: Firmware, kind: str) -> None:
    """A pipe without a writer would be waited for, and /dev/zero read, for ever."""
    names = {name: file(tmp_path / name) for name in ("code", "template", "vars")}
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        uefi = Uefi(**{**names, kind: path})  # type: ignore[arg-type]
        assert told(uefi) == [f"firmware.{kind}: {path!r} is not a file"]
    uefi = Uefi(**{**names, kind: str(tmp_path)})  # type: ignore[arg-type]
    assert told(uefi) == [f"firmware.{kind}: {str(tmp_path)!r} cannot be read: is a directory"]


# --- Secure Boot that would be one by name only

LAX = "(leave out code and template: the host's own are chosen)"


def test_a_code_that_runs_anything(firmware: Firmware) -> None:
    firmware("enrolled", features=SECURE)
    plain = firmware("plain")
    assert told(Uefi(plain.code, secure_boot=True)) == [
        f"firmware.code: {plain.code!r} has no Secure Boot {LAX}",
        f"firmware.template: {plain.template!r} has no keys enrolled {LAX}",
    ]
    assert told(Uefi(plain.code)) == []


def test_a_store_without_keys(firmware: Firmware, tmp_path: Path) -> None:
    enrolled = firmware("enrolled", features=SECURE)
    able = firmware("able", features=SECURE - {"enrolled-keys"})
    fault = f"firmware.template: {able.template!r} has no keys enrolled {LAX}"
    assert told(Uefi(able.code, secure_boot=True)) == [fault]
    assert told(Uefi(enrolled.code, able.template, secure_boot=True)) == [fault]
    # What is in the user's own store is the user's to know.
    assert told(Uefi(able.code, file(tmp_path / "mine"), secure_boot=True)) == []


def test_a_store_from_before_secure_boot(firmware: Firmware, tmp_path: Path) -> None:
    """It has the size that is expected, and would start anything without a word."""
    enrolled = firmware("enrolled", features=SECURE)
    path = file(tmp_path / "web.vars")
    assert told(Uefi(vars=path, secure_boot=True)) == [], "nothing is known of such a template"
    Path(enrolled.template).write_bytes(variable("PK").ljust(4096, b"\xff"))
    assert told(Uefi(vars=path, secure_boot=True)) == [
        f"firmware.vars: {path!r} has no keys enrolled, so that Secure Boot would be off "
        "(move it away: a new one is made, with keys)"
    ]
    Path(path).write_bytes(Path(enrolled.template).read_bytes())
    assert told(Uefi(vars=path, secure_boot=True)) == []


# --- the machine's own store


@pytest.fixture
def uefi(firmware: Firmware, tmp_path: Path) -> Uefi:
    firmware("plain")
    return Uefi(vars=tmp_path / "web.vars")


def store(uefi: Uefi) -> Path:
    assert uefi.vars is not None
    return Path(uefi.vars)


def test_one_to_be_made(uefi: Uefi) -> None:
    assert told(uefi) == []
    assert not store(uefi).exists(), "it was only looked at"


def test_one_that_is_there(uefi: Uefi) -> None:
    file(store(uefi))
    assert told(uefi) == []


def test_no_directory_for_it(uefi: Uefi, tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    assert told(attrs.evolve(uefi, vars=folder / "web.vars")) == [
        f"firmware.vars: the directory {str(folder)!r} does not exist (mkdir -p {folder})"
    ]


def test_a_directory_without_permission(uefi: Uefi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.X_OK)
    folder = str(store(uefi).parent)
    assert told(uefi) == [f"firmware.vars: no file can be made in {folder!r}: no permission"]


def test_a_link_to_nowhere(uefi: Uefi, tmp_path: Path) -> None:
    store(uefi).symlink_to(tmp_path / "nowhere")
    assert told(uefi) == [
        f"firmware.vars: {uefi.vars!r} is a link to {str(tmp_path / 'nowhere')!r}, "
        "which does not exist (remove the link)"
    ]


def test_not_writable(uefi: Uefi, monkeypatch: pytest.MonkeyPatch) -> None:
    file(store(uefi))
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    assert told(uefi) == [f"firmware.vars: {uefi.vars!r} may not be written"]


def test_not_readable(uefi: Uefi, monkeypatch: pytest.MonkeyPatch) -> None:
    file(store(uefi))
    real = check_files._open_once

    def refuse(path: Path) -> None:
        if path == store(uefi):
            raise PermissionError(13, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(check_files, "_open_once", refuse)
    assert told(uefi) == [f"firmware.vars: {uefi.vars!r} cannot be read: permission denied"]


def test_a_store_of_another_firmware(uefi: Uefi, firmware: Firmware) -> None:
    file(store(uefi), 8192)
    code = found(attrs.evolve(uefi, vars=None)).code
    assert told(uefi) == [
        f"firmware.vars: {uefi.vars!r} is no store for {code!r}: it has 8KiB, not the 4KiB of its "
        "template (name the firmware it was made for in firmware.code)"
    ]
    big = firmware("big", size=8192)
    assert told(attrs.evolve(uefi, code=big.code)) == []


def test_a_store_in_another_format(firmware: Firmware, tmp_path: Path) -> None:
    one = firmware("one", template_format="qcow2")
    path = qcow2(tmp_path / "web.vars")
    assert told(Uefi(vars=path)) == []
    file(path)
    assert told(Uefi(vars=path)) == [
        f"firmware.vars: {str(path)!r} is no store for {one.code!r}: it is raw, not qcow2 as its "
        "template (name the firmware it was made for in firmware.code)"
    ]


@pytest.mark.parametrize("kind", ["code", "template"])
@pytest.mark.parametrize("by", ["name", "symlink", "hard link"])
def test_what_machines_share(firmware: Firmware, tmp_path: Path, kind: str, by: str) -> None:
    """The guest would write for all of them, and as root it could."""
    plain = firmware("plain")
    shared = Path(getattr(plain, kind))
    path = shared if by == "name" else tmp_path / "web.vars"
    if by == "symlink":
        path.symlink_to(shared)
    elif by == "hard link":
        path.hardlink_to(shared)
    assert told(Uefi(vars=path)) == [
        f"firmware.vars: {str(path)!r} is the {kind} too, which machines share "
        "(name a file of its own)"
    ]


def test_in_use(uefi: Uefi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_files, "image_locked", lambda path, for_writing: for_writing)
    file(store(uefi))
    with store(uefi).open():
        _, (problem,) = look_at_flash(uefi, "x86_64", None)
    assert isinstance(problem.alone, ImageInUse)
    assert f"(pid {os.getpid()}) has it open" in str(problem.alone)
    assert problem.fault.hint == "give each machine a store of its own"
    assert problem.fault.path == "firmware.vars"


def test_several_at_once(uefi: Uefi, monkeypatch: pytest.MonkeyPatch) -> None:
    file(store(uefi), 8192)
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    monkeypatch.setattr(check_files, "image_locked", lambda path, for_writing: True)
    found = told(uefi)
    assert len(found) == 3
    for line, words in zip(found, ("may not be written", "is no store", "in use"), strict=True):
        assert words in line


def test_unchecked_it_is_not_looked_at(uefi: Uefi, tmp_path: Path) -> None:
    missing = attrs.evolve(uefi, vars=tmp_path / "absent/web.vars")
    assert told(missing, check=False) == []
    file(store(uefi), 1)
    assert told(uefi, check=False) == []
    # The firmware is: without it there is nothing to show.
    assert told(attrs.evolve(uefi, code="/absent"), check=False) != []
