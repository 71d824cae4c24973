"""Health checks as they are written, and those that can never pass."""

from __future__ import annotations

from typing import Any

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.chardev import Serial
from qmpkit.spec.health import (
    CHECK_KINDS,
    AgentCheck,
    Check,
    ConsoleCheck,
    FunctionCheck,
    Health,
    HttpCheck,
    ProcessCheck,
    QmpCheck,
    TcpCheck,
    health_faults,
    health_needs,
    to_checks,
    to_health,
)
from qmpkit.spec.network import Forward, Nic, StreamNic, UserNic


async def well(_: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("process", ProcessCheck()),
        ("qmp", QmpCheck()),
        ("agent", AgentCheck()),
        ("tcp:22", TcpCheck(22)),
        ("http:80", HttpCheck(80)),
        ("http:80/a/b?c=d:e", HttpCheck(80, "/a/b?c=d:e")),
        ("console:login:", ConsoleCheck("login:")),
    ],
)
def test_checks_as_texts(text: str, check: Check) -> None:
    assert to_checks([text]) == to_checks(text) == to_checks((check,)) == (check,)
    if not isinstance(check, HttpCheck) or check.path != "/":
        assert str(check) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("agnet", "did you mean 'agent'?"),
        ("tcp", '"tcp:22"'),
        ("tcp:ssh", '"tcp:22"'),
        ("tcp:", '"tcp:22"'),
        ("http:80x", '"http:80/path"'),
        ("http:", '"http:80/path"'),
        ("console:", '"console:login:"'),
        ("agent:5", '"agent"'),
        ("function", '"process"'),
        ("", '"process"'),
    ],
)
def test_texts_that_are_no_checks(text: str, hint: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        to_checks(["qmp", text])
    (fault,) = caught.value.faults
    assert fault.path == "health.checks[1]"
    assert hint in fault.hint


def test_every_bad_text_is_told() -> None:
    with pytest.raises(SpecInvalid) as caught:
        to_checks(["x", "agent", "y"])
    assert [fault.path for fault in caught.value.faults] == ["health.checks[0]", "health.checks[2]"]


@pytest.mark.parametrize("value", [5, [5], {"tcp": 22}])
def test_what_is_no_list_of_checks(value: Any) -> None:
    with pytest.raises(SpecInvalid, match="health"):
        to_health(value)


@pytest.mark.parametrize(
    ("value", "health"),
    [
        (None, None),
        ("agent", Health(checks=(AgentCheck(),))),
        (TcpCheck(1), Health(checks=(TcpCheck(1),))),
        (["agent", TcpCheck(1)], Health(checks=(AgentCheck(), TcpCheck(1)))),
        (Health(checks="qmp", retries=1), Health(checks=(QmpCheck(),), retries=1)),
    ],
)
def test_short_forms(value: Any, health: Health | None) -> None:
    assert to_health(value) == health


def test_a_function_is_named_by_itself_or_by_its_author() -> None:
    assert str(FunctionCheck(well)) == "well"
    assert str(FunctionCheck(well, "replica")) == "replica"
    assert "function" not in CHECK_KINDS


@pytest.mark.parametrize(
    ("health", "paths"),
    [
        (Health(), ["checks"]),
        (Health(checks="qmp", interval=0), ["interval"]),
        (Health(checks="qmp", timeout=float("nan")), ["timeout"]),
        (Health(checks="qmp", start_interval=float("inf")), ["start_interval"]),
        (Health(checks="qmp", start_period=-1, retries=0), ["start_period", "retries"]),
        (Health(checks="tcp:0"), ["checks[0].port"]),
        (Health(checks="http:65536"), ["checks[0].port"]),
        (Health(checks=[HttpCheck(80, "x")]), ["checks[0].path"]),
        (Health(checks=[HttpCheck(80, "/x y\r\n")]), ["checks[0].path"]),
        (Health(checks=[ConsoleCheck("")]), ["checks[0].text"]),
        (Health(checks=["qmp", "agent", "qmp"]), ["checks[2]"]),
        (Health(checks=[FunctionCheck("well")]), ["checks[0].call"]),  # type: ignore[arg-type]
        (Health(checks=["process", "tcp:22", FunctionCheck(well)], start_period=0), []),
    ],
)
def test_faults(health: Health, paths: list[str]) -> None:
    assert [fault.path for fault in health_faults(health)] == [f"health.{path}" for path in paths]


def test_what_a_check_needs_of_the_machine() -> None:
    health = Health(checks=["agent", "tcp:22", "http:80", "tcp:53", "console:login:", "qmp"])
    nics: list[Nic] = [StreamNic(), UserNic(forwards=["0:22"]), UserNic()]
    faults = health_needs(health, agent=False, nics=nics, serials=[Serial("serial1")])
    assert [str(fault) for fault in faults] == [
        "health.checks[0]: the machine has no channel for an agent (agent = true)",
        'health.checks[2].port: no forward leads to port 80 (a user NIC with forwards = ["0:80"])',
        'health.checks[3].port: no forward leads to port 53 (a user NIC with forwards = ["0:53"])',
        "health.checks[4].serial: there is no console 'serial0' (did you mean 'serial1'?)",
    ]
    enough = [UserNic(forwards=["0:22", "8080:80", "0:53"])]
    assert not list(health_needs(health, agent=True, nics=enough, serials=[Serial()]))


def test_a_forward_of_udp_leads_to_no_tcp_port() -> None:
    nics = [UserNic(forwards=[Forward(0, 22, "udp")])]
    assert list(health_needs(Health(checks="tcp:22"), agent=False, nics=nics, serials=[]))
