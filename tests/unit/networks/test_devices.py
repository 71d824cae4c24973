"""Bridges over a netlink that refuses a step: what was begun goes again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qmpkit.errors import HostLacks
from qmpkit.networks import devices
from qmpkit.networks.devices import all_devices, make_bridge

netlink = pytest.importorskip("pyroute2.netlink.exceptions", reason="needs qmpkit[farm]")

OWNER = "qmpkit /state"


class Message(dict[str, Any]):
    """A device or an address as netlink tells it."""

    def get_attr(self, name: str) -> Any:
        return self["attrs"].get(name)


class Kernel:
    """Devices by their index; *refuses* the request of that kind and verb."""

    def __init__(self) -> None:
        self.links: dict[int, Message] = {}
        self.addresses: list[Message] = []
        self.refuses = ""

    def link_lookup(self, ifname: str) -> list[int]:
        return [n for n, it in self.links.items() if it.get_attr("IFLA_IFNAME") == ifname]

    def get_links(self, *indexes: int) -> Iterator[Message]:
        return (it for n, it in self.links.items() if not indexes or n in indexes)

    def get_addr(self, index: int | None = None, family: int = 0) -> Iterator[Message]:
        return (it for it in self.addresses if index in (None, it["index"]))

    def link(self, verb: str, index: int = 0, **how: Any) -> None:
        self._judge(f"link {verb} {how.get('state', '')}".strip())
        if verb == "add":
            index = len(self.links) + 1
            self.links[index] = Message(index=index, flags=0, attrs={})
        elif verb == "del":
            del self.links[index]
            return
        attributes = {f"IFLA_{key.upper()}": item for key, item in how.items()}
        self.links[index]["attrs"] |= attributes
        self.links[index]["flags"] |= int(how.get("state") == "up")

    def addr(self, verb: str, *, index: int, address: str, prefixlen: int) -> None:
        self._judge(f"addr {verb}")
        attributes = {"IFA_ADDRESS": address}
        self.addresses.append(Message(index=index, prefixlen=prefixlen, attrs=attributes))

    def _judge(self, request: str) -> None:
        if request == self.refuses:
            raise netlink.NetlinkError(errno.ENOBUFS)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    @contextmanager
    def opened(purpose: str, cure: str) -> Iterator[Kernel]:
        try:
            yield made
        except netlink.NetlinkError as error:
            raise HostLacks(f"cannot {purpose}") from error

    monkeypatch.setattr(devices, "opened_netlink", opened)
    return made


@pytest.mark.parametrize("step", ["addr add", "link set up"])
def test_a_new_bridge_that_cannot_be_set_up_goes_again(step: str, kernel: Kernel) -> None:
    kernel.refuses = step
    with pytest.raises(HostLacks, match="cannot make the bridge 'br'"):
        make_bridge("br", OWNER, "10.0.0.1/24")
    assert kernel.links == {}


def test_one_that_was_there_stays(kernel: Kernel) -> None:
    assert make_bridge("br", OWNER, "10.0.0.1/24")
    kernel.addresses.clear()
    kernel.refuses = "addr add"
    with pytest.raises(HostLacks):
        make_bridge("br", OWNER, "10.0.0.1/24")
    kernel.refuses = ""
    assert not make_bridge("br", OWNER, "10.0.0.1/24")
    (bridge,) = all_devices().values()
    assert (bridge.owner, bridge.is_up) == (OWNER, True)
    assert bridge.addresses == {"10.0.0.1/24"}
