"""UEFI in a spec: how it is written, what contradicts itself, and what QEMU is told of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.argv import render
from qmpkit.spec.block import Disk
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.check import faults_of, validate
from qmpkit.spec.data import spec_from_dict, spec_from_toml, spec_to_dict, spec_to_toml
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.firmware import Firmware, Uefi, to_firmware
from qmpkit.spec.machine import MachineSpec, channels
from qmpkit.spec.profile import load_profile

FLASH = Flash(code="/f/code,a.fd", template="/f/empty,a.fd")


# --- as people write it


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, None),
        ("uefi", Uefi()),
        ("UEFI", "UEFI"),
        ("./uefi", "./uefi"),
        ("/f/bios.bin", "/f/bios.bin"),
        (Path("bios.bin"), "bios.bin"),
        (Path("uefi"), "./uefi"),
        (Path("./uefi"), "./uefi"),
        (Path("/f/uefi"), "/f/uefi"),
        (Uefi("/f/code"), Uefi("/f/code")),
    ],
)
def test_what_is_written_and_what_is_meant(written: Any, meant: Firmware) -> None:
    assert to_firmware(written) == meant
    assert MachineSpec(firmware=written).firmware == meant


def test_paths_become_texts() -> None:
    assert Uefi(Path("c"), Path("t"), Path("v")) == Uefi("c", "t", "v")


@pytest.mark.parametrize("value", [True, 5, {"code": "c"}, ["uefi"], b"uefi"])
def test_what_is_no_firmware_is_said_so(value: Any) -> None:
    with pytest.raises(SpecInvalid) as caught:
        MachineSpec(firmware=value)
    assert str(caught.value) == f'firmware: cannot be {value!r} ("uefi", or a BIOS file)'


@pytest.mark.parametrize(
    ("uefi", "message"),
    [
        ({"code": b"c"}, "firmware.code: must be a text, not bytes"),
        ({"secure_boot": "yes"}, "firmware.secure_boot: must be true or false, not a text: 'yes'"),
        ({"secure_boot": 1}, "firmware.secure_boot: must be true or false, not a number: 1"),
    ],
)
def test_fields_of_the_wrong_type(uefi: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        validate(MachineSpec(firmware=Uefi(**uefi)))
    assert [str(fault) for fault in caught.value.faults] == [message]


# --- contradictions

CASES: list[tuple[dict[str, Any], str]] = [
    ({"code": ""}, "firmware.code: the path is empty"),
    ({"code": "c", "template": ""}, "firmware.template: the path is empty"),
    ({"vars": ""}, "firmware.vars: the path is empty"),
    (
        {"template": "t"},
        "firmware.template: an empty store is of use only to the code it belongs to "
        "(name that in firmware.code)",
    ),
    (
        {"code": "c", "vars": "c"},
        "firmware.vars: 'c' is the code too, which machines share (name a file of its own)",
    ),
    (
        {"code": "c", "template": "t", "vars": "t"},
        "firmware.vars: 't' is the template too, which machines share (name a file of its own)",
    ),
    ({"code": "c\0"}, "firmware.code: holds a NUL character"),
    ({"vars": "v\0"}, "firmware.vars: holds a NUL character"),
    ({"code": "c\udcff"}, r"firmware.code: 'c\udcff': QEMU takes no text that is not UTF-8"),
    ({"vars": "v\uffff"}, r"firmware.vars: 'v\uffff': QEMU takes no U+FFFF, which Unicode keeps"),
]


@pytest.mark.parametrize(("uefi", "message"), CASES, ids=[message[:50] for _, message in CASES])
def test_one_fault_one_message(uefi: dict[str, Any], message: str) -> None:
    (fault,) = faults_of(MachineSpec(firmware=Uefi(**uefi)))
    assert str(fault).startswith(message)


def test_all_faults_at_once() -> None:
    uefi = Uefi(template="t", vars="t", secure_boot=True)
    found = faults_of(MachineSpec(machine="microvm", firmware=uefi))
    assert [fault.path for fault in found] == ["firmware", "firmware.template", "firmware.vars"]


@pytest.mark.parametrize(
    ("uefi", "arch", "machine"),
    [
        (Uefi(), "x86_64", "q35"),
        (Uefi(secure_boot=True), "x86_64", "pc-q35-7.2"),
        (Uefi("c", "t", "v", secure_boot=True), "aarch64", "virt"),
        (Uefi("c"), "riscv64", "virt"),
        # A BIOS file's name is an argument of its own, and the template is not in QEMU's JSON.
        ("b\udcff", "x86_64", "q35"),
        (Uefi("c", "t\udcff"), "x86_64", "q35"),
    ],
)
def test_what_is_in_order(uefi: str | Uefi, arch: str, machine: str) -> None:
    assert faults_of(MachineSpec(arch=arch, machine=machine, firmware=uefi)) == ()


def test_a_board_without_flash() -> None:
    (fault,) = faults_of(MachineSpec(machine="microvm", firmware=Uefi(secure_boot=True)))
    assert str(fault) == 'firmware: microvm has no flash for UEFI (machine = "q35")'


def test_a_board_without_secure_boot() -> None:
    spec = MachineSpec(arch="riscv64", machine="virt", firmware=Uefi(secure_boot=True))
    (fault,) = faults_of(spec)
    assert str(fault) == "firmware.secure_boot: there is none for virt on riscv64 (leave it out)"


@pytest.mark.parametrize("smm", [False, "off", "auto", 0])
def test_secure_boot_needs_smm_on_q35(smm: Any) -> None:
    spec = MachineSpec(machine_options={"smm": smm}, firmware=Uefi(secure_boot=True))
    (fault,) = faults_of(spec)
    assert str(fault) == "machine_options.smm: Secure Boot needs it (leave it out)"
    assert faults_of(attrs.evolve(spec, firmware=Uefi())) == ()


@pytest.mark.parametrize("smm", [True, "on"])
def test_smm_may_be_said_too(smm: Any) -> None:
    spec = MachineSpec(machine_options={"smm": smm}, firmware=Uefi(secure_boot=True))
    assert faults_of(spec) == ()


@pytest.mark.parametrize("option", ["pflash0", "pflash1", "firmware"])
def test_the_chips_are_not_plugged_by_hand(option: str) -> None:
    (fault,) = faults_of(MachineSpec(machine_options={option: "x"}))
    assert str(fault) == f"machine_options.{option}: is set by 'firmware'"


def test_a_disk_cannot_be_the_store_nor_have_its_node() -> None:
    disks = [Disk("v", format="raw"), Disk("w", format="raw", node="qk-pflash1-file")]
    spec = MachineSpec(firmware=Uefi(vars="v"), disks=disks)
    assert [str(fault) for fault in faults_of(spec)] == [
        "disks[1].node: node name 'qk-pflash1-file' is already used by firmware",
        "disks[0].file: 'v' is already firmware.vars",
    ]


# --- as data

SPECS = [
    MachineSpec(firmware="uefi"),
    MachineSpec(firmware=Path("uefi")),
    MachineSpec(firmware="/f/bios"),
    MachineSpec(firmware=Uefi(vars="v,'\"ü")),
    MachineSpec(firmware=Uefi("/c", "/t", "/v", secure_boot=True)),
]


@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("spec", SPECS, ids=[str(spec.firmware) for spec in SPECS])
def test_round_trips(spec: MachineSpec, defaults: bool) -> None:
    assert spec_from_dict(spec_to_dict(spec, defaults=defaults)) == spec
    assert spec_from_toml(spec_to_toml(spec, defaults=defaults)) == spec


def test_short_as_people_write_it() -> None:
    short = [spec_to_dict(spec, defaults=False)["firmware"] for spec in SPECS[:4]]
    assert short == ["uefi", "./uefi", "/f/bios", {"vars": "v,'\"ü"}]


def test_a_path_called_uefi_stays_a_path(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('schema = 1\nfirmware = "./uefi"\n')
    assert load_profile(tmp_path / "p.toml").firmware == str(tmp_path / "uefi")


def test_a_profiles_paths_count_from_it_and_add_to_its_base(tmp_path: Path) -> None:
    text = 'schema = 1\nextends = "q35-uefi"\n[firmware]\nvars = "web.vars"\nsecure_boot = true\n'
    (tmp_path / "web.toml").write_text(text)
    assert load_profile("q35-uefi").firmware == Uefi()
    expected = Uefi(vars=str(tmp_path / "web.vars"), secure_boot=True)
    assert load_profile(tmp_path / "web.toml").firmware == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("firmware = 5", 'firmware: must be "uefi", a BIOS file or a table, not a number: 5'),
        ("firmware = true", 'firmware: must be "uefi", a BIOS file or a table, not true or false'),
        ('firmware = ["uefi"]', 'firmware: must be "uefi", a BIOS file or a table, not a list'),
        ('firmware.varz = "x"', "firmware.varz: unknown key (did you mean 'vars'?)"),
        ("firmware.vars = 5", "firmware.vars: must be a text, not a number: 5"),
        ("firmware.secure_boot = 1", "firmware.secure_boot: must be true or false, not a number"),
        ('firmware.template = "t"', "firmware.template: an empty store is of use only to the"),
    ],
)
def test_faults_of_a_file(text: str, message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec_from_toml(f"schema = 1\n{text}\n")
    (fault,) = caught.value.faults
    assert str(fault).startswith(message)


# --- on the command line


def argv(spec: MachineSpec, flash: Flash | None = FLASH, **more: Any) -> list[str]:
    endpoints = {name: FdEndpoint(10 + n) for n, name in enumerate(channels(spec))}
    return render(spec, Facts(flash=flash), endpoints, **more)


def after(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


def chip(number: int, filename: str, *, readonly: bool, driver: str = "raw") -> list[str]:
    """The words for one chip, as QEMU's documentation has them."""
    told = "true" if readonly else "false"
    node = f'"node-name":"qk-pflash{number}'
    return [
        "-blockdev",
        f'{{"driver":"file",{node}-file","filename":"{filename}","read-only":{told}}}',
        "-blockdev",
        f'{{"driver":"{driver}",{node}","file":"qk-pflash{number}-file","read-only":{told}}}',
    ]


def between(words: list[str], first: str, last: str) -> list[str]:
    """The words after the `-m` option and before `-S`: what the machine boots by."""
    return words[words.index(first) + 2 : words.index(last)]


def test_a_store_of_its_own_word_by_word() -> None:
    words = argv(MachineSpec(firmware=Uefi(vars="/v,b")))
    assert between(words, "-m", "-S") == [
        *chip(0, "/f/code,a.fd", readonly=True),
        *chip(1, "/v,b", readonly=False),
    ]
    machine = "q35,memory-backend=ram0,pflash0=qk-pflash0,pflash1=qk-pflash1"
    assert after(words, "-machine") == [machine]
    assert not {"-bios", "-add-fd", "-drive", "-global"} & set(words)


def test_a_private_store_word_by_word() -> None:
    words = argv(MachineSpec(firmware="uefi"), store=7)
    assert between(words, "-m", "-S") == [
        *chip(0, "/f/code,a.fd", readonly=True),
        *("-add-fd", "fd=7,set=1"),
        *chip(1, "/dev/fdset/1", readonly=False),
    ]


def test_to_paste_word_by_word() -> None:
    words = argv(MachineSpec(firmware="uefi"))
    assert between(words, "-m", "-S") == [
        *chip(0, "/f/code,a.fd", readonly=True),
        "-drive",
        "if=none,id=qk-pflash1,format=raw,file=/f/empty,,a.fd,snapshot=on",
    ]


def test_a_store_of_its_own_wins_over_a_descriptor() -> None:
    words = argv(MachineSpec(firmware=Uefi(vars="/v")), store=7)
    assert "-add-fd" not in words
    assert chip(1, "/v", readonly=False) == between(words, "-m", "-S")[4:]


@pytest.mark.parametrize("store", [7, None])
def test_formats(store: int | None) -> None:
    flash = Flash(code="/c", template="/t", code_format="qcow2", store_format="qcow2")
    words = argv(MachineSpec(firmware="uefi"), flash, store=store)
    drivers = [json.loads(text)["driver"] for text in after(words, "-blockdev")]
    assert drivers == ["file", "qcow2", *(["file", "qcow2"] if store else [])]
    assert all("format=qcow2" in text for text in after(words, "-drive"))


def test_secure_boot_on_q35_guards_the_chip_by_smm() -> None:
    words = argv(MachineSpec(firmware=Uefi(vars="/v", secure_boot=True)))
    machine = "q35,memory-backend=ram0,pflash0=qk-pflash0,pflash1=qk-pflash1,smm=on"
    assert after(words, "-machine") == [machine]
    assert after(words, "-global") == ["driver=cfi.pflash01,property=secure,value=on"]


def test_smm_said_too_is_told_once() -> None:
    spec = MachineSpec(machine_options={"smm": "on"}, firmware=Uefi(secure_boot=True))
    (machine,) = after(argv(spec), "-machine")
    assert machine.count("smm=") == 1
    assert "smm=on" in machine.split(",")


def test_secure_boot_on_arm_has_nothing_to_guard_with() -> None:
    uefi = Uefi(vars="/v", secure_boot=True)
    words = argv(MachineSpec(arch="aarch64", machine="virt", firmware=uefi))
    assert "-global" not in words
    assert "smm" not in " ".join(words)


def test_files_that_nobody_has_looked_for() -> None:
    with pytest.raises(ValueError, match="facts do not tell which firmware"):
        argv(MachineSpec(firmware="uefi"), None)
