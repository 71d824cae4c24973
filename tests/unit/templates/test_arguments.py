"""What no clone, pool or template can be made by: told at once, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.host.resolve import Resolution
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.errors import PoolClosed
from qmpkit.templates.make import make_template
from qmpkit.templates.manifest import Build, GuestHooks, Manifest
from qmpkit.templates.pool import Pool
from qmpkit.templates.saved import Saved
from qmpkit.templates.template import Template

SPEC = MachineSpec(name="web", agent=True)


def template(hooks: GuestHooks | None) -> Template:
    manifest = Manifest(
        id="0123abcd",
        created=1.5,
        spec=SPEC,
        build=Build(binary="/usr/bin/q", version=(7, 2, 22), package="", accel="tcg"),
        ram="ram",
        files=(),
        hooks=hooks,
    )
    return Template(Saved(Path("/srv/web"), manifest, SPEC, {}, cast(Resolution, None)))


def faults(ask: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as caught:
        ask()
    return {fault.path: fault.message for fault in caught.value.faults}


WEB = template(GuestHooks(program="/run/p", script="/run/s"))


@pytest.mark.parametrize("count", ["3", True, None, 2.0, float("nan"), 0, -1])
def test_a_number_of_clones_is_one(count: Any) -> None:
    (said,) = faults(lambda: WEB.clones(count)).items()
    assert said[0] == "count" and repr(count) in said[1]


def test_a_clone_is_told_all_that_is_wrong_with_it() -> None:
    asked: dict[str, Any] = {"twin": "yes", "paused": 1, "ssh_host_keys": None, "place": 3}
    told = faults(lambda: WEB.clone("a/b", options=cast(Any, 0), **asked))
    assert list(told) == ["name", "twin", "ssh_host_keys", "paused", "place", "options"]
    assert told["place"] == "is the path of a folder, not 3"
    assert faults(lambda: WEB.clone(cast(Any, 3))) == {"name": "is a text, not 3"}
    assert faults(lambda: WEB.clones(2, place="")) == {"place": "the path is empty"}
    told = faults(lambda: template(None).clones(cast(Any, "2"), ssh_host_keys=True))
    assert list(told) == ["count", "twin"]


def test_a_pool_is_told_all_that_is_wrong_with_it() -> None:
    asked: dict[str, Any] = {"warm": -1, "loaded": "no", "memory": float("nan"), "twin": None}
    told = faults(lambda: Pool(WEB, **asked))
    assert list(told) == ["warm", "loaded", "memory", "twin"]
    assert told["warm"] == "counts from 0, not from -1"


@pytest.mark.parametrize("warm", ["3", True, None, 1.0, float("nan")])
def test_a_number_of_warm_machines_is_one(warm: Any) -> None:
    said = f"is a whole number from 0 on, not {warm!r}"
    assert faults(lambda: Pool(WEB, warm=warm)) == {"warm": said}


async def test_a_pool_that_is_not_entered_says_so() -> None:
    with pytest.raises(PoolClosed, match=r"not entered\. Cure: `async with pool:` first"):
        async with Pool(WEB).take():
            pass


@pytest.mark.parametrize(
    ("services", "path"),
    [("nginx", "services"), (7, "services"), (iter("a"), "services"), (["a", "b c"], "services[1]")]
    + [([name], "services[0]") for name in ("", "-x", "a\nb", 7)],
)
async def test_a_service_is_named_before_the_boot(services: Any, path: str, tmp_path: Path) -> None:
    async def never(_: object) -> None:
        raise AssertionError("it was booted")

    with pytest.raises(SpecInvalid) as caught:
        await make_template(SPEC, tmp_path / "web", never, services=services)
    assert [fault.path for fault in caught.value.faults] == [path]
    with pytest.raises(SpecInvalid, match=r"services: nothing is asked of a guest.*--service"):
        await make_template(SPEC, tmp_path / "web", never, services=["nginx"], twins=True)
