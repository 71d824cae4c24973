"""A farm on a bridge that qmpkit makes, with DHCP, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpkit.networks.lent import PLACES
from tests.live.kept import Places
from tests.sizes import NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.bound(180),
    pytest.mark.qemus(*NEWEST),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace takes root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="this host has no iproute2"),
]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
profile = "tiny-microvm"
restart = "on-failure"
[networks.lan]
kind = "bridge"
bridge = "{bridge}"
make = true
subnet = "192.168.55.0/24"
address = "192.168.55.1"
dhcp = "192.168.55.100-192.168.55.{last}"
[machines.web]
count = 2
networks = ["lan"]
health = {{ checks = ["agent"], start_period = 300 }}
"""


class Namespace:
    """A network namespace in which the commands run, and with them the daemon."""

    def __init__(self, folder: Path, qemu: str) -> None:
        self.folder = folder
        self.qemu = qemu
        self.name = f"qk-{os.getpid()}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.do("ip", "link", "set", "lo", "up")

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def do(self, *words: str, status: int = 0) -> str:
        inside = ["ip", "netns", "exec", self.name, *words]
        done = subprocess.run(
            inside, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr if status else done.stdout

    def qmpkit(self, *words: str, status: int = 0) -> str:
        return self.do(sys.executable, "-m", "qmpkit.cli", *words, status=status)

    def farm(self, *, last: int = 199, bridge: str = "qkbr") -> None:
        text = FARM.format(qemu=self.qemu, last=last, bridge=bridge)
        (self.folder / "farm.toml").write_text(text)

    def up(self, *words: str) -> dict[str, tuple[str, str]]:
        """What was done with each machine, and why."""
        told = json.loads(self.qmpkit("up", "farm.toml", "--json", *words))
        return {it["name"]: (it["did"], it["why"]) for it in told["machines"]}

    def pids(self) -> list[int]:
        return [it["pid"] for it in json.loads(self.qmpkit("ps", "--json"))]

    def devices(self) -> dict[str, Any]:
        return {it["ifname"]: it for it in json.loads(self.do("ip", "-j", "address"))}


@pytest.fixture
def net(tmp_path: Path, qemu: str, places: Places) -> Iterator[Namespace]:
    folder = tmp_path / "lab"
    folder.mkdir()
    made = Namespace(folder, qemu)
    yield made
    made.close()


def address_of(net: Namespace, machine: str) -> str:
    # At boot it asks too, but a slow host may have it give up before.
    script = "udhcpc -q -n -t 10 -T 1 -i eth0 -s /etc/dhcp >&2; ip -4 -o addr show eth0"
    words = net.qmpkit("exec", machine, "--", "sh", "-c", script).split()
    return words[words.index("inet") + 1].partition("/")[0]


def test_a_bridge_with_dhcp_is_made_kept_and_removed(net: Namespace, places: Places) -> None:
    before = net.devices().keys()
    net.farm()
    net.qmpkit("up", "farm.toml")
    bridge = net.devices()["qkbr"]
    assert [it["local"] for it in bridge["addr_info"] if it["family"] == "inet"] == ["192.168.55.1"]
    one, two = (address_of(net, name) for name in ("web1", "web2"))
    assert one != two and {one.rpartition(".")[0], two.rpartition(".")[0]} == {"192.168.55"}
    assert 100 <= int(one.rpartition(".")[2]) <= 199
    for target in (two, "192.168.55.1"):
        net.qmpkit("exec", "web1", "--", "ping", "-c", "1", "-W", "5", target)
    taps = set(net.devices()) - before
    net.qmpkit("migrate", "web1")
    net.qmpkit("exec", "web2", "--", "ping", "-c", "3", "-W", "5", one)
    moved = set(net.devices()) - before
    assert len(moved) == len(taps) and len(moved - taps) == 1, "the one has gone, another is there"
    assert net.up() == dict.fromkeys(("web1", "web2"), ("unchanged", ""))

    os.kill(int((places.state / "lab" / "lock").read_text()), signal.SIGKILL)
    net.qmpkit("ps")
    net.farm(last=150)
    net.qmpkit("up", "farm.toml")
    net.qmpkit("exec", "web1", "--", "ping", "-c", "1", "-W", "5", two)

    net.qmpkit("down")
    assert net.devices().keys() == before
    assert not list(places.state.rglob("leases")) and not list(places.state.rglob("helpers.json"))


def test_a_device_of_somebody_elses_is_left_alone(net: Namespace, places: Places) -> None:
    net.do("ip", "link", "add", "own", "type", "bridge")
    net.farm(bridge="own")
    said = net.qmpkit("up", "farm.toml", status=1)
    assert "the device 'own' is there and was made by somebody else" in said
    assert "make = false" in said
    assert "own" in net.devices()
    assert [name for name in net.devices() if name.startswith("qk")] == []
    net.qmpkit("down")
    assert "own" in net.devices()


def test_a_bridge_that_was_deleted_comes_back_whole(net: Namespace, places: Places) -> None:
    net.farm()
    net.qmpkit("up", "farm.toml")
    before = net.devices()
    net.do("ip", "link", "delete", "qkbr")
    net.qmpkit("restart", "web1")
    net.qmpkit("wait", "web1", "--for", "healthy")
    assert net.devices()["qkbr"]["ifindex"] != before["qkbr"]["ifindex"]
    one, two = (address_of(net, name) for name in ("web1", "web2"))  # by its server, of both
    net.qmpkit("exec", "web1", "--", "ping", "-c", "1", "-W", "5", two)
    assert one != two
    net.qmpkit("down")


def test_a_bridge_that_was_deleted_is_mended_while_its_machines_run(
    net: Namespace, places: Places
) -> None:
    net.farm()
    net.up()
    before, pids = net.devices(), net.pids()
    net.do("ip", "link", "delete", "qkbr")
    gone = "the bridge 'qkbr' of network 'lan': removed"
    told = net.qmpkit("plan", "farm.toml")
    assert "~ web1 gets back what its networks lack" in told
    assert told.count(f"    {gone}") == 2
    assert net.up() == dict.fromkeys(("web1", "web2"), ("mended", gone))
    assert net.devices()["qkbr"]["ifindex"] != before["qkbr"]["ifindex"]
    one, two = (address_of(net, name) for name in ("web1", "web2"))  # by its server, of both
    net.qmpkit("exec", "web1", "--", "ping", "-c", "1", "-W", "5", two)
    assert one != two and net.pids() == pids

    tap = next(name for name, it in net.devices().items() if it.get("master") == "qkbr")
    for device in (tap, "qkbr"):
        net.do("ip", "link", "delete", device)
    lost = f"after a restart: the tap device of nic0 of network 'lan': removed ({tap})"
    for _ in range(2):  # the new one of its name is not the one that QEMU had
        assert ("restart-needed", lost) in net.up().values()
    assert tap in net.devices()
    assert "restarted" in {did for did, _ in net.up("--restart").values()}
    assert net.up() == dict.fromkeys(("web1", "web2"), ("unchanged", ""))
    net.qmpkit("down")


def test_a_bridge_that_comes_back_in_part_goes_again(net: Namespace, places: Places) -> None:
    net.farm()
    net.qmpkit("up", "farm.toml")
    net.qmpkit("stop", "web1")
    (tap,) = [name for name, it in net.devices().items() if "NO-CARRIER" in it["flags"]]
    for device in ("qkbr", tap):
        net.do("ip", "link", "del", device)
    net.do("ip", "link", "add", tap, "type", "bridge")
    assert f"the device '{tap}' is there" in net.qmpkit("start", "web1", status=3)
    assert "qkbr" not in net.devices()
    net.do("ip", "link", "del", tap)
    net.qmpkit("start", "web1")
    net.qmpkit("wait", "web1", "--for", "healthy")
    addresses = {address_of(net, name) for name in ("web1", "web2")}
    assert len(addresses) == 2
    net.qmpkit("down")


def test_a_network_that_the_host_is_in_already_is_no_bridges(
    net: Namespace, places: Places
) -> None:
    net.do("ip", "link", "add", "own", "type", "bridge")
    net.do("ip", "address", "add", "192.168.55.9/24", "dev", "own")
    net.farm()
    said = net.qmpkit("up", "farm.toml", status=1)
    assert "cannot have 192.168.55.1/24: this host's 'own' is in 192.168.55.0/24 already" in said
    assert "give the network another subnet" in said
    assert [name for name in net.devices() if name.startswith("qk")] == []
    net.qmpkit("down")


SERVER = """
import socket
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taken.bind(("", 67))
print("bound", flush=True)
input()
"""


def test_another_dhcp_server_is_told_before_any_machine_starts(
    net: Namespace, places: Places
) -> None:
    net.farm()
    words = ["ip", "netns", "exec", net.name, sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "bound\n"
        said = net.qmpkit("up", "farm.toml", status=1)
        server.communicate("\n")
    for name in ("web1", "web2"):
        assert f"{name} FAILED (no DHCP on 'qkbr': UDP port 67 is another program's" in said
    assert json.loads(net.qmpkit("ps", "--json")) == []
    net.qmpkit("down")


LENT = """
schema = 1
[networks.lan]
kind = "bridge"
bridge = "own"
[machines.web]
qemu = "{qemu}"
accel = "tcg"
memory = "16MiB"
networks = ["lan"]
"""


@pytest.mark.skipif(not Path(PLACES[0], "qemu-bridge-helper").exists(), reason="QEMU has no helper")
def test_who_may_make_no_device_has_one_from_qemus_helper(net: Namespace, places: Places) -> None:
    net.do("ip", "link", "add", "own", "type", "bridge")
    farm = net.folder / "farm.toml"
    farm.write_text(LENT.format(qemu=net.qemu))
    rules = net.folder / "rules"
    rules.mkdir()
    program = f"mount --bind {rules} /etc/qemu && exec {sys.executable} -m tests.live.lent_tap $0"
    with_rules = ["env", f"PYTHONPATH={Path.cwd()}", "sh", "-c", program, str(farm)]
    Path("/etc/qemu").mkdir(exist_ok=True)
    refused = net.do(*with_rules, status=1)
    assert "gives no tap device on 'own'" in refused
    (rules / "bridge.conf").write_text("allow own\n")
    assert net.do(*with_rules).split() == ["1", "nic0", "1"]
    assert [name for name in net.devices() if "tap" in name] == []
