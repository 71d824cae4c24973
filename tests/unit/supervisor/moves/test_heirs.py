"""Which of two processes is the machine, when its supervisor has died while it moved."""

from __future__ import annotations

import attrs
import pytest

from qmpkit import MachineSpec, UserNic
from qmpkit.process.identity import Identity
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.moves.heirs import Arrival, Owner, owner_of_guest
from qmpkit.supervisor.record import Heir, Record

S, H, N, B = Owner.SOURCE, Owner.HEIR, Owner.NOBODY, Owner.BOTH
EMPTY, LOADED, RUNS = Arrival("active", False), Arrival("completed", False), Arrival("x", True)


@pytest.mark.parametrize(
    ("source", "heir", "owner"),
    [
        # The source has ended, has not begun, is sending, stands still, has sent all, has failed.
        (None, None, S),
        (None, EMPTY, S),
        (None, LOADED, H),
        (None, RUNS, H),
        ("none", None, S),
        ("none", Arrival("none", False), S),
        ("active", None, S),
        ("active", EMPTY, S),
        ("pre-switchover", None, S),
        ("pre-switchover", EMPTY, S),
        ("device", EMPTY, S),
        ("device", LOADED, S),
        ("completed", EMPTY, S),
        ("completed", LOADED, H),
        ("completed", RUNS, H),
        ("completed", None, N),
        ("failed", LOADED, S),
        ("failed", None, S),
        ("cancelled", None, S),
        # Postcopy: the devices are on their way, the heir has them, runs, is cut off, has all.
        ("postcopy-active", EMPTY, B),
        ("postcopy-active", Arrival("postcopy-active", False), B),
        ("postcopy-active", Arrival("postcopy-active", True), B),
        ("postcopy-paused", Arrival("postcopy-active", True), B),
        ("postcopy-paused", Arrival("postcopy-paused", True), B),
        ("postcopy-recover", Arrival("postcopy-recover", True), B),
        ("completed", Arrival("postcopy-active", True), B),
        ("postcopy-active", Arrival("completed", True), H),
        ("postcopy-active", LOADED, H),
        (None, Arrival("postcopy-paused", True), N),
        (None, Arrival("postcopy-active", True), N),
        (None, Arrival("postcopy-active", False), N),
        ("failed", Arrival("postcopy-paused", True), N),
        ("failed", EMPTY, S),  # before it had let go of the images
        ("postcopy-active", None, N),
        ("postcopy-paused", None, N),
    ],
)
def test_one_of_them_has_the_guest(source: str | None, heir: Arrival | None, owner: Owner) -> None:
    assert owner_of_guest(source, heir) is owner


def test_an_heir_is_on_record() -> None:
    spec = MachineSpec(name="web", nics=[UserNic(forwards=["2222:22"])])
    heir = Heir(
        identity=Identity("boot", 17, 4),
        sockets="/run/qmpkit/lab/web~",
        argv=("qemu", "-S"),
        facts=Facts(accel="kvm", flash=Flash(code="/c", template="/t"), cpu_flags=("-x",)),
        spec=spec,
    )
    record = Record(
        name="web",
        declared="running",
        spec=spec,
        asked="",
        restart=Restart(policy="never"),
        sockets="/run/qmpkit/lab/web",
        heir=heir,
    )
    assert Record.from_json(record.to_json()) == record
    without = attrs.evolve(record, heir=None)
    assert Record.from_json(without.to_json()) == without
    old = without.to_json().replace(', "heir": null', "")
    assert "heir" not in old and Record.from_json(old) == without
