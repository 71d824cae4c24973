"""Which thread sits where, what differs, what is counted: decided without a machine."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from qmpkit.farm.tuning import tuned
from qmpkit.operations.tune.live import differing
from qmpkit.operations.tune.seats import asks_for_seats, seats
from qmpkit.operations.tune.stats import DiskUse, Stats
from qmpkit.operations.tune.threads import Threads
from qmpkit.operations.tune.usage import MemoryUse, NicUse, ThreadTime, nic_use, thread_time
from qmpkit.process.scheduling import Seat, put_back, seat_all, seat_of
from qmpkit.spec.block import Disk
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import TapNic
from qmpkit.spec.resources import Resources

THREADS = Threads(10, {0: 11, 1: 12}, {"io": 13}, (10, 14))
FREE = Seat((0, 1, 2, 3), "other", 0, 0)


def spec(pin: object = None, **resources: object) -> MachineSpec:
    cpu = Cpu(2, pin=pin)  # type: ignore[arg-type]
    return MachineSpec(cpu=cpu, resources=Resources(**resources))  # type: ignore[arg-type]


def test_nothing_is_said_of_a_plain_machine() -> None:
    assert seats(spec(), THREADS) == {}
    assert not asks_for_seats(spec("auto"))  # a start has made it concrete
    assert seats(spec("auto"), THREADS) == {}


@pytest.mark.parametrize("said", [{"nice": 0}, {"policy": "batch"}, {"iothreads": {"io": "1"}}])
def test_each_field_is_a_reason_to_look_for_threads(said: dict[str, object]) -> None:
    assert asks_for_seats(spec(**said))


def test_each_sort_of_thread_has_its_seat() -> None:
    wanted = spec(
        ["2", ""], emulator="0", iothreads={"io": "1,3"}, policy="fifo", priority=5, nice=3
    )
    assert seats(wanted, THREADS) == {
        10: Seat((0,), nice=3),
        11: Seat((2,), "fifo", 5, 3),
        12: Seat(None, "fifo", 5, 3),
        13: Seat((1, 3), nice=3),
        14: Seat((0,), nice=3),
    }
    assert seats(spec("2-3"), THREADS) == {11: Seat((2, 3)), 12: Seat((2, 3))}


def test_vcpus_that_share_a_thread_share_their_places() -> None:
    together = attrs.evolve(THREADS, vcpus={0: 11, 1: 11})
    assert seats(spec(["1", "2"]), together) == {11: Seat((1, 2))}


def test_what_is_said_no_more_is_given_back() -> None:
    before = spec("1", emulator="0", policy="batch", nice=7)
    assert seats(spec("2"), THREADS, before=before, free=FREE) == {
        10: Seat((0, 1, 2, 3), nice=0),
        11: Seat((2,), "other", 0, 0),
        12: Seat((2,), "other", 0, 0),
        13: Seat(nice=0),
        14: Seat((0, 1, 2, 3), nice=0),
    }


def test_threads_that_have_ended_are_left_out_and_all_is_put_back() -> None:
    own = os.getpid()
    cpu = min(os.sched_getaffinity(0))
    first = seat_of(own)
    before = seat_all({own: Seat((cpu,)), 2**22 + 1: Seat((cpu,))})
    try:
        assert seat_of(own).cpus == (cpu,)
        assert [tid for tid, _ in before] == [own]
    finally:
        put_back([*before, (2**22 + 1, first)])
    assert seat_of(own) == first


def test_the_fields_in_which_specs_differ() -> None:
    old = MachineSpec(disks=[Disk("/a", format="raw")], nics=[TapNic(ifname="t0")])
    new = attrs.evolve(
        old,
        disks=[Disk("/a", format="raw", cache="none")],
        nics=[TapNic(ifname="t0", max_sent="1MiB")],
        resources=Resources(nice=1, cpu_max=2),
        agent=True,
    )
    assert set(differing(old, new)) == {
        "disks[0].cache",
        "nics[0].max_sent",
        "resources.nice",
        "resources.cpu_max",
        "agent",
    }
    assert list(differing(old, attrs.evolve(old, nics=[]))) == ["nics"]


def test_a_farms_change_leaves_what_a_start_has_decided() -> None:
    old, new = spec("auto", nice=1), spec("auto", nice=2)
    running = spec(["4", "5"], nice=1, emulator="6-7")
    assert tuned(running, old, new) == spec(["4", "5"], nice=2, emulator="6-7")
    assert tuned(running, old, spec("1", nice=1)).cpu.pin == "1"
    assert tuned(old, old, old) == old


def test_counters_become_rates() -> None:
    earlier = Stats(
        machine="a",
        time=10.0,
        vcpus={0: ThreadTime(1.0, 1.0, 0.5)},
        iothreads={"io": ThreadTime(1.0)},
        emulator=ThreadTime(0.0, 1.0),
        memory=MemoryUse(),
        disks={"disk0": DiskUse(read=1000, reads=1)},
        nics={"nic0": NicUse(received=10)},
        kvm={},
    )
    later = attrs.evolve(
        earlier,
        time=12.0,
        vcpus={0: ThreadTime(2.0, 1.5, 0.7), 1: ThreadTime(1.0)},
        disks={"disk0": DiskUse(read=3000, reads=5), "disk1": DiskUse(read=9)},
        nics={"nic0": NicUse(received=30)},
    )
    rates = later.since(earlier)
    assert rates.vcpus == {0: 0.75}
    assert rates.cpu == pytest.approx((1.5 + 1.0) / 2)
    assert rates.waited == pytest.approx(0.1)
    assert rates.disks == {"disk0": DiskUse(read=1000.0, reads=2.0)}  # type: ignore[arg-type]
    assert rates.nics["nic0"].received == 10.0


def test_what_the_kernel_counts(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/net/tap0/statistics"
    folder.mkdir(parents=True)
    counters = {"rx_bytes": 7, "tx_bytes": 5, "rx_packets": 2, "tx_packets": 1}
    for name, value in {**counters, "rx_dropped": 3, "tx_dropped": 4}.items():
        (folder / name).write_text(f"{value}\n")
    assert nic_use("tap0", tmp_path) == NicUse(5, 7, 1, 2, 7)
    assert nic_use("tap1", tmp_path) is None
    own = thread_time(os.getpid(), [os.getpid(), 2**22 + 1])
    assert own.total > 0
