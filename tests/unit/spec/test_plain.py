"""A spec as plain data: what cattrs, which reads it, would make of it."""

from __future__ import annotations

from typing import Any

import cattrs
from hypothesis import given

from qmpkit import Disk, MachineSpec, Memory
from qmpkit.spec.convert import _writers, unstructure
from qmpkit.spec.peripherals import (
    DEVICE_KINDS,
    Device,
    Rng,
    ScsiController,
    Share,
    UsbController,
    UsbHost,
    UsbKeyboard,
    UsbTablet,
    Vfio,
    VirtioMem,
    Vsock,
)
from qmpkit.spec.plain import plain
from tests.unit.spec.strategies import machines

SHORT = cattrs.Converter(omit_if_default=True)
_writers(SHORT)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value


@given(machines())
def test_with_its_defaults_a_machine_is_as_by_cattrs(spec: MachineSpec) -> None:
    assert plain(spec, defaults=True) == without_none(unstructure(spec))


@given(machines())
def test_without_them_too(spec: MachineSpec) -> None:
    assert plain(spec, defaults=False) == without_none(SHORT.unstructure(spec))


DEVICES: tuple[Device, ...] = (
    Rng(),
    Vsock(cid=3),
    ScsiController(),
    UsbController(),
    UsbTablet(),
    UsbKeyboard(),
    UsbHost(hostbus=1, hostaddr=2),
    Share(tag="s", path="/p"),
    Vfio(host="0000:01:00.0"),
    VirtioMem(size="1GiB"),
)


def test_the_devices_say_of_which_kind_they_are() -> None:
    spec = MachineSpec(devices=DEVICES)
    assert {type(device) for device in DEVICES} == set(DEVICE_KINDS.values())
    assert plain(spec, defaults=True) == without_none(unstructure(spec))
    assert plain(spec, defaults=False) == without_none(SHORT.unstructure(spec))


def test_a_size_has_its_unit_and_a_number_has_none() -> None:
    spec = MachineSpec(memory=Memory("1GiB"), cpu=2, disks=[Disk("a", format="raw", make=4096)])
    table = plain(spec, defaults=False)
    assert table["memory"] == {"size": "1GiB"}
    assert table["cpu"] == {"cpus": 2}
    assert table["disks"][0]["make"] == "4KiB"
