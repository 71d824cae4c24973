"""QEMU's firmware descriptors on a host that is made up below a directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qmpkit.errors import HostLacks
from qmpkit.host.firmware import FirmwareFiles, find_firmware, installed_firmware

USR, ETC, HOME = "usr/share", "etc", "home/.config"
SECURE = ("secure-boot", "enrolled-keys", "requires-smm")


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own directory is below the made-up root too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{HOME}")


def described(name: str, **more: Any) -> dict[str, Any]:
    """A descriptor as Debian writes them; its files are called after *name*."""
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/fw/{name}.code", "format": "raw"},
            "nvram-template": {"filename": f"/fw/{name}.vars", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        **more,
    }


def write(root: Path, place: str, file: str, content: dict[str, Any] | str | bytes) -> Path:
    path = root / place / "qemu/firmware" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def install(root: Path, place: str, file: str, name: str, **more: Any) -> Path:
    """A descriptor and its files."""
    (root / "fw").mkdir(exist_ok=True)
    for kind in ("code", "vars"):
        (root / "fw" / f"{name}.{kind}").write_bytes(b"")
    return write(root, place, file, described(name, **more))


def codes(root: Path) -> list[str]:
    return [Path(found.code).stem for found in installed_firmware(root)]


# --- which there are, and in what order


def test_what_a_descriptor_says(tmp_path: Path) -> None:
    path = install(tmp_path, USR, "60-a.json", "a")
    assert installed_firmware(tmp_path) == (
        FirmwareFiles(
            code="/fw/a.code",
            template="/fw/a.vars",
            descriptor=str(path),
            targets=(("x86_64", "pc-i440fx-*"), ("x86_64", "pc-q35-*")),
            features=frozenset({"acpi-s3"}),
        ),
    )


def test_formats(tmp_path: Path) -> None:
    mapping = described("a")["mapping"]
    mapping["executable"]["format"] = mapping["nvram-template"]["format"] = "qcow2"
    install(tmp_path, USR, "60-a.json", "a", mapping=mapping)
    (found,) = installed_firmware(tmp_path)
    assert (found.code_format, found.template_format) == ("qcow2", "qcow2")


def test_a_host_with_none(tmp_path: Path) -> None:
    assert installed_firmware(tmp_path) == ()


def test_by_name_whatever_the_directory(tmp_path: Path) -> None:
    install(tmp_path, HOME, "70-home.json", "home")
    install(tmp_path, ETC, "50-etc.json", "etc")
    install(tmp_path, USR, "60-usr.json", "usr")
    install(tmp_path, USR, "9-last.json", "last")
    assert codes(tmp_path) == ["etc", "usr", "home", "last"]


def test_the_more_specific_directory_hides_a_namesake(tmp_path: Path) -> None:
    for place, name in ((USR, "usr"), (ETC, "etc"), (HOME, "home")):
        install(tmp_path, place, "60-a.json", name)
        assert codes(tmp_path) == [name]


@pytest.mark.parametrize("hider", [ETC, HOME])
@pytest.mark.parametrize("content", ["", "{", "null"])
def test_a_namesake_that_offers_nothing_hides_all_the_same(
    tmp_path: Path, hider: str, content: str
) -> None:
    install(tmp_path, USR, "60-a.json", "a")
    install(tmp_path, USR, "61-b.json", "b")
    write(tmp_path, hider, "60-a.json", content)
    assert codes(tmp_path) == ["b"]


def test_the_general_directory_hides_nothing(tmp_path: Path) -> None:
    install(tmp_path, ETC, "60-a.json", "a")
    write(tmp_path, USR, "60-a.json", "")
    assert codes(tmp_path) == ["a"]


def test_other_files_beside_them(tmp_path: Path) -> None:
    install(tmp_path, USR, "60-a.json", "a")
    install(tmp_path, USR, "50-b.json.bak", "b")
    install(tmp_path, USR, "README", "c")
    (tmp_path / USR / "qemu/firmware/40-d.json").mkdir()
    assert codes(tmp_path) == ["a"]


def test_a_file_in_a_directorys_place(tmp_path: Path) -> None:
    install(tmp_path, USR, "60-a.json", "a")
    (tmp_path / ETC).mkdir()
    (tmp_path / ETC / "qemu").write_text("")
    assert codes(tmp_path) == ["a"]


# --- where the user's own are


def test_without_xdg_it_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "root/.config", "60-a.json", "a")
    install(tmp_path, HOME, "60-b.json", "b")
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert codes(tmp_path) == ["a"]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert codes(tmp_path) == ["a"]
    monkeypatch.setenv("XDG_CONFIG_HOME", HOME)  # a relative one does not count
    assert codes(tmp_path) == ["a"]


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, under a number that no file knows."""
    install(tmp_path, USR, "60-a.json", "a")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert codes(tmp_path) == ["a"]


# --- what is no descriptor of use

MAPPING = described("a")["mapping"]


def without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def mapped(**more: Any) -> dict[str, Any]:
    return {**described("a"), "mapping": {**MAPPING, **more}}


WRONG: dict[str, Any] = {
    "of a BIOS": described("a", **{"interface-types": ["bios"]}),
    "interface as a text": described("a", **{"interface-types": "uefi"}),
    "in memory": mapped(device="memory", filename="/fw/a.code"),
    "without a store": mapped(mode="stateless"),
    "one file for both": mapped(mode="combined"),
    **{f"no {key}": without(described("a"), key) for key in ("interface-types", "mapping")},
    "no targets": without(described("a"), "targets"),
    **{
        f"no {key}": {**described("a"), "mapping": without(MAPPING, key)}
        for key in ("device", "executable", "nvram-template")
    },
    "no format": mapped(executable={"filename": "/fw/a.code"}),
    "a number for a name": mapped(executable={"filename": 5, "format": "raw"}),
    "a number for a format": mapped(executable={"filename": "/fw/a.code", "format": 5}),
    "a NUL in a name": mapped(executable={"filename": "/fw/a\0", "format": "raw"}),
    "half a character": mapped(executable={"filename": "/fw/\ud800", "format": "raw"}),
    "a name without end": mapped(executable={"filename": "/" + "n" * 9999, "format": "raw"}),
    "a relative name": mapped(executable={"filename": "fw/a.code", "format": "raw"}),
    "a mapping that is a text": described("a", mapping="flash"),
    "targets as a table": described("a", targets={"architecture": "x86_64"}),
    "a number for a pattern": described("a", targets=[{"architecture": "x86_64", "machines": [5]}]),
    "a text for patterns": described("a", targets=[{"architecture": "x86_64", "machines": "*"}]),
    "a number for an arch": described("a", targets=[{"architecture": 5, "machines": ["*"]}]),
    "features as a text": described("a", features="enrolled-keys"),
    "features as null": described("a", features=None),
    "features of lists": described("a", features=[["secure-boot"]]),
    "a list": "[1, 2]",
    "a number": "5",
    "a text": '"uefi"',
    "half of it": json.dumps(described("a"))[:-40],
    "not UTF-8": b'{"interface-types": "\xff\xfe\xfa"}',
    "nested without end": "[" * 200_000,
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG.keys())
def test_one_that_is_of_no_use_is_passed_over(tmp_path: Path, content: Any) -> None:
    install(tmp_path, USR, "50-a.json", "a")
    install(tmp_path, USR, "60-b.json", "b")
    assert codes(tmp_path) == ["a", "b"]
    write(tmp_path, USR, "50-a.json", content)
    assert codes(tmp_path) == ["b"]
    assert find_firmware("x86_64", root=tmp_path).code == "/fw/b.code"


@pytest.mark.parametrize("kind", ["code", "vars"])
def test_one_whose_files_are_not_there(tmp_path: Path, kind: str) -> None:
    install(tmp_path, USR, "50-a.json", "a")
    install(tmp_path, USR, "60-b.json", "b")
    (tmp_path / "fw" / f"a.{kind}").unlink()
    assert codes(tmp_path) == ["b"]
    (tmp_path / "fw" / f"a.{kind}").mkdir()
    assert codes(tmp_path) == ["b"]


def test_one_whose_files_are_closed_to_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, USR, "50-a.json", "a")
    install(tmp_path, USR, "60-b.json", "b")
    real = os.stat

    def stat(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if os.fspath(path).endswith("a.code"):
            raise PermissionError(13, "Permission denied")  # root is never told so
        return real(path, *args, **more)

    monkeypatch.setattr(os, "stat", stat)
    assert codes(tmp_path) == ["b"]


def test_a_link_to_a_file_is_one(tmp_path: Path) -> None:
    install(tmp_path, USR, "50-a.json", "a")
    (tmp_path / "fw/a.code").rename(tmp_path / "fw/real")
    (tmp_path / "fw/a.code").symlink_to("real")
    assert codes(tmp_path) == ["a"]
    (tmp_path / "fw/real").unlink()
    assert codes(tmp_path) == []


# --- which is chosen


def test_by_machine_type(tmp_path: Path) -> None:
    targets = [{"architecture": "x86_64", "machines": ["pc-q35-10.?", "pc-q35-9.[12]"]}]
    install(tmp_path, USR, "50-new.json", "new", targets=targets)
    install(tmp_path, USR, "60-old.json", "old")
    arm = [{"architecture": "aarch64", "machines": ["virt-*"]}]
    install(tmp_path, USR, "70-arm.json", "arm", targets=arm)
    wanted = {
        ("x86_64", "pc-q35-10.0"): "new",
        ("x86_64", "pc-q35-9.1"): "new",
        ("x86_64", "pc-q35-9.0"): "old",
        ("x86_64", None): "new",
        ("aarch64", "virt-7.2"): "arm",
        ("aarch64", None): "arm",
    }
    for (arch, machine), name in wanted.items():
        assert find_firmware(arch, machine, root=tmp_path).code == f"/fw/{name}.code"
    # The letter's case counts, and the pattern is for the whole name.
    for arch, machine in (("aarch64", "pc-q35-9.0"), ("x86_64", "PC-q35-9.0"), ("x86_64", "pc")):
        with pytest.raises(HostLacks):
            find_firmware(arch, machine, root=tmp_path)


def test_several_targets(tmp_path: Path) -> None:
    targets = [
        {"architecture": "i386", "machines": ["pc-q35-*"]},
        {"architecture": "x86_64", "machines": ["pc-q35-*"]},
    ]
    install(tmp_path, USR, "50-a.json", "a", targets=targets)
    assert find_firmware("x86_64", "pc-q35-7.2", root=tmp_path).code == "/fw/a.code"
    with pytest.raises(HostLacks):
        find_firmware("aarch64", root=tmp_path)


def test_secure_boot_and_plain(tmp_path: Path) -> None:
    """As Debian has them: the first by name would not do for either."""
    install(tmp_path, USR, "40-enrolled.json", "enrolled", features=SECURE)
    install(tmp_path, USR, "50-able.json", "able", features=["secure-boot", "requires-smm"])
    install(tmp_path, USR, "60-plain.json", "plain")
    assert find_firmware("x86_64", root=tmp_path).code == "/fw/plain.code"
    assert find_firmware("x86_64", secure_boot=True, root=tmp_path).code == "/fw/enrolled.code"


@pytest.mark.parametrize(
    ("features", "plain", "secure"),
    [
        ([], True, False),
        (["secure-boot"], True, False),  # it can, and with no keys it starts anything
        (["secure-boot", "requires-smm"], False, False),
        (["enrolled-keys"], False, False),
        (["secure-boot", "enrolled-keys"], False, True),
        (SECURE, False, True),
    ],
)
def test_what_features_mean(tmp_path: Path, features: list[str], plain: bool, secure: bool) -> None:
    install(tmp_path, USR, "50-a.json", "a", features=features)
    (found,) = installed_firmware(tmp_path)
    assert (found.plain, found.secure_boot) == (plain, secure)


@pytest.mark.parametrize(
    ("arch", "secure_boot", "message"),
    [
        ("x86_64", False, "no UEFI firmware for x86_64. Cure: sudo apt install ovmf"),
        (
            "x86_64",
            True,
            "no UEFI firmware with Secure Boot for x86_64. Cure: sudo apt install ovmf",
        ),
        ("aarch64", False, "no UEFI firmware for aarch64. Cure: sudo apt install qemu-efi-aarch64"),
        (
            "riscv64",
            False,
            "no UEFI firmware for riscv64. "
            "Cure: sudo apt install qemu-efi-riscv64 (from Debian 13)",
        ),
        ("sparc64", False, "no UEFI firmware for sparc64. Cure: name its files in `firmware`"),
    ],
)
def test_what_to_install(tmp_path: Path, arch: str, secure_boot: bool, message: str) -> None:
    install(tmp_path, USR, "50-able.json", "able", features=["secure-boot", "requires-smm"])
    with pytest.raises(HostLacks) as caught:
        find_firmware(arch, secure_boot=secure_boot, root=tmp_path)
    assert str(caught.value) == f"this host has {message}"
