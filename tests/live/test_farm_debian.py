"""A farm with a real Debian, from one file: made by cloud-init, reached, changed, scaled, gone.

CI boots one Debian beside some tiny machines; `scripts/test --long` two, on three networks.
"""

from __future__ import annotations

import hashlib
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

from qmpkit.testing import guests
from tests.live.kept import Places
from tests.sizes import FARM_DEBIAN_GRACE, FARM_DEBIANS, FARM_SEGMENTS, FARM_TINY, OLDEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST)]

FARM = """
schema = 1
[variables]
image = "{image}"
[defaults]
qemu = "{qemu}"
accel = "tcg"
restart = "on-failure"
health = {{ checks = ["agent"], start_period = 900 }}
[networks.out]
kind = "nat"
[machines.disk]
profile = "q35"
count = {debians}
networks = ["out", {lans}]
ports = {ports}
# Without KVM and beside others: until then failures do not count.
health = {{ checks = ["agent", "tcp:22"], start_period = 900 }}
[[machines.disk.disks]]
file = "disks/{{name}}.qcow2"
format = "qcow2"
make = {{ file = "${{image}}", format = "qcow2" }}
[machines.disk.cloud_init]
user = "grace"
ssh_key_files = ["key.pub"]
write_files = [{{ path = "/etc/told", content = "by the farm", permissions = "0604" }}]
"""
SEGMENT = """
[networks.lan{n}]
kind = "segment"
subnet = "10.{n}.0.0/24"
[machines.tiny{n}x]
profile = "tiny"
count = {tiny}
networks = ["lan{n}"]
"""


class Lab:
    """The directory of a farm's file, its key and its disks; the command is run in it."""

    def __init__(self, folder: Path, qemu: str) -> None:
        self.folder = folder
        self.qemu = qemu
        self.image = guests.build_debian()
        folder.mkdir()
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")]
        subprocess.run(words, check=True, timeout=60)

    def write(self, ports: list[str]) -> None:
        """The farm's file."""
        lans = (f'{{name="lan{n}", ip="10.{n}.0.{{n}}"}}' for n in range(1, FARM_SEGMENTS + 1))
        text = FARM.format(
            image=self.image,
            qemu=self.qemu,
            debians=FARM_DEBIANS,
            lans=", ".join(lans),
            ports=json.dumps(ports),
        )
        each = FARM_TINY // FARM_SEGMENTS
        text += "".join(SEGMENT.format(n=n + 1, tiny=each) for n in range(FARM_SEGMENTS))
        (self.folder / "farm.toml").write_text(text)

    def run(self, *words: str, timeout: float = 120) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "qmpkit.cli", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def ssh(self, name: str, script: str) -> str:
        """What a script says there, as whom the farm's cloud-init made, by the farm's key."""
        options = ["-i", "key", "-oIdentitiesOnly=yes", "-oBatchMode=yes", "-F/dev/null"]
        return self.run("ssh", name, "--", *options, script)

    def did(self, *words: str) -> dict[str, str]:
        """What a command has done with each machine."""
        outcome = json.loads(self.run(*words, "--json", timeout=1500))
        assert outcome["went_well"], outcome
        return {machine["name"]: machine["did"] for machine in outcome["machines"]}


@pytest.fixture
def lab(tmp_path: Path, qemu: str, places: Places) -> Iterator[Lab]:
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh and ssh-keygen (Debian's openssh-client)")
    yield Lab(tmp_path / "lab", qemu)
    lock = places.state / "lab" / "lock"
    if lock.exists():
        os.kill(int(lock.read_text()), signal.SIGTERM)


def _checksum(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_farm_with_debian(lab: Lab, places: Places) -> None:
    before = _checksum(lab.image)
    lab.write(["0:22"])
    assert set(lab.did("up", "farm.toml").values()) == {"added"}
    for number in range(1, FARM_DEBIANS + 1):
        _is_as_its_seed_says(lab, f"disk{number}")
    _hear_each_other(lab)
    _is_known_to_others(lab)
    _changes(lab)
    _scales(lab)
    _goes(lab, places)
    assert _checksum(lab.image) == before, "all was written into overlays"


def _is_as_its_seed_says(lab: Lab, name: str) -> None:
    lab.run("cp", "key.pub", f"{name}:/tmp/")
    script = "hostname; id -un; sudo id -u; cat /etc/told; stat -c %a /etc/told; cat /tmp/key.pub"
    said, key = lab.ssh(name, script), (lab.folder / "key.pub").read_text()
    assert said == f"{name}\ngrace\n0\nby the farm604\n{key}"
    # By the agent, which is no user and needs no network.
    assert lab.run("exec", name, "--", "hostname") == f"{name}\n"
    passwords = "cut -d: -f2 /etc/shadow | tr -d '*!\\n'"
    assert lab.run("exec", name, "--", "sh", "-c", passwords) == "", "there are none"


def _hear_each_other(lab: Lab) -> None:
    """By segment, and not across."""
    for n in range(1, FARM_SEGMENTS + 1):
        others = [other for other in range(1, FARM_SEGMENTS + 1) if other != n]
        addresses = "; ".join(f"ip addr add 10.{k}.0.20{n}/24 dev eth0" for k in (n, *others))
        reach = f"ip link set eth0 up; {addresses}; ping -c 1 -W 9 10.{n}.0.1"
        lab.run("exec", f"tiny{n}x1", "--", "sh", "-c", reach)
        for k in others:
            deaf = f"! ping -c 2 -W 1 10.{k}.0.1"
            lab.run("exec", f"tiny{n}x1", "--", "sh", "-c", deaf)


def _is_known_to_others(lab: Lab) -> None:
    """What OpenSSH and Ansible are told leads there too."""
    config = lab.folder / "config"
    config.write_text(lab.run("ssh-config", "disk*"))
    (name, *_) = json.loads(lab.run("inventory"))["disk"]["hosts"]
    options = ["-F", str(config), "-i", str(lab.folder / "key"), "-oBatchMode=yes"]
    done = subprocess.run(
        ["ssh", *options, name, "id -un"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "grace\n", done.stderr


def _changes(lab: Lab) -> None:
    """Ports change while Debian runs, which notices nothing."""
    name = json.loads(lab.run("inventory"))["disk"]["hosts"][0]
    boot = ("exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
    before, way = lab.run(*boot), _way_in(lab, name)
    lab.write(["0:22", "0:80"])
    assert set(lab.did("up", "farm.toml").values()) == {"changed", "unchanged"}
    assert _forwards(lab, name) == [22, 80]
    assert (lab.run(*boot), _way_in(lab, name)) == (before, way)


def _seen(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run("inspect", name))[0]
    return found


def _forwards(lab: Lab, name: str) -> list[int]:
    return sorted(it["guest_port"] for it in _seen(lab, name)["forwards"])


def _way_in(lab: Lab, name: str) -> int:
    (port,) = (it["port"] for it in _seen(lab, name)["forwards"] if it["guest_port"] == 22)
    return int(port)


def _scales(lab: Lab) -> None:
    each = FARM_TINY // FARM_SEGMENTS
    assert "added" in lab.did("scale", f"tiny1x={each + 1}").values()
    assert "removed" in lab.did("scale", f"tiny1x={each}").values()


def _goes(lab: Lab, places: Places) -> None:
    grace = ("--grace", str(FARM_DEBIAN_GRACE))
    assert set(lab.did("down", "--delete-disks", "--yes", *grace).values()) == {"removed"}
    assert json.loads(lab.run("ps", "--json")) == []
    assert (places.qemus(), places.records()) == ([], {})
    assert list((places.state / "lab" / "seeds").iterdir()) == []
    assert list((lab.folder / "disks").iterdir()) == []
